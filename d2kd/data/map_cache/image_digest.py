# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What an image is found by in a cache: a digest of the pixels that a network is given."""

import hashlib
from collections.abc import Callable
from glob import escape, iglob
from typing import Any

from torch import Tensor

from .entry_file import entry_pattern, read_ahead

__all__ = ["DIGEST_KEY", "DigestingMapper", "image_digest"]

# The key of a sample under which its image's digest is found.
DIGEST_KEY = "image_digest"


def image_digest(image: Tensor) -> str:
    """40 hexadecimal digits that stand for the pixels, the size and the type of an image.

    Whatever a mapper does to an image, equal digests mean equal network inputs: the flip, the size
    and the file's version need not be told apart by name.

    Args:
        image: (3, H, W) of a sample, on the CPU.
    """
    # SHA-1 is the fastest here, 0.05 ms for 160 x 160 pixels; nobody forges training images.
    digest = hashlib.sha1(image.contiguous().numpy().data, usedforsecurity=False)
    digest.update(f"{image.dtype}{tuple(image.shape)}".encode())
    return digest.hexdigest()


class DigestingMapper:
    """Calls a mapper, adds the image's digest, and asks the system to read its maps ahead.

    It runs in the data workers, two batches before the step that needs the maps.
    """

    def __init__(self, mapper: Callable, folder: str = ""):
        """
        Args:
            mapper: record -> training sample.
            folder: of the cache; "" if it is not in a folder.
        """
        self.mapper = mapper
        self.folder = escape(folder)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        sample = self.mapper(record)
        if sample is None:
            return None
        digest = image_digest(sample["image"])
        if self.folder:
            # Of all teachers in the folder, which are few: this process knows none of them.
            for path in iglob(entry_pattern(self.folder, digest)):
                read_ahead(path)
        return {**sample, DIGEST_KEY: digest}
