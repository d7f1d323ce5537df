# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Files that are written completely or not at all, and what tells one file from another."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

__all__ = ["UNFINISHED", "atomic_write", "sha256"]

# The end of a file's name while it is written.
UNFINISHED = ".unfinished"


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's content in hexadecimal digits; it may be larger than memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_write(path: str, mode: str) -> Iterator[IO]:
    """Open a local file for writing; it appears at ``path`` only once it is complete.

    The content goes to a temporary file in the same folder, is flushed to the disk, and the file
    is renamed. A reader of ``path`` finds the old file or the new one, also after a kill or a power
    cut. If writing fails, the temporary file is removed.

    Args:
        path: of the file.
        mode: "w" or "wb".
    """
    unfinished = path + UNFINISHED
    try:
        with open(unfinished, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        with suppress(FileNotFoundError):
            os.remove(unfinished)
    _sync_folder(os.path.dirname(path) or ".")


def _sync_folder(folder: str) -> None:
    """Flush a rename to the disk, where the system can open folders (Windows cannot)."""
    with suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
