# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What an image file's header tells: is it there, is it an image, can detectors read it."""

import os
import re
import warnings
from collections.abc import Iterable
from typing import NamedTuple

from detectron2.config import CfgNode
from PIL import Image

from ...utils.errors import DatasetError

__all__ = ["ImageHeader", "check_shapes", "image_size", "read_header", "separator_hint"]

_EXIF_ORIENTATION = 0x0112
_TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
# Pillow's modes of more than 8 bits a channel. Converted to RGB, as Detectron2 does, they are
# clipped at 255: nearly everything becomes white, without a word.
_DEEP_MODES = ("I", "F")
# Pillow's raw modes of 16 bits a channel, of which it keeps the upper 8 without a word: values
# that use 12 of the 16 bits become nearly black. (BGR;16 has 16 bits a pixel.)
_DEEP_RAW_MODE = re.compile(r"^(?!BGR)[A-Za-z]+;16[BLNS]?$")


class ImageHeader(NamedTuple):
    """An image file's size as Detectron2 will read it, and its EXIF orientation (1: upright)."""

    width: int
    height: int
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    @property
    def transposed(self) -> bool:
        """Whether reading it swaps the width and height of the file."""
        return self.orientation in _TRANSPOSED_ORIENTATIONS


def separator_hint(path: str) -> str:
    """A sentence on backslashes in the path of a file that is not there; empty without any."""
    if "\\" not in path:
        return ""
    other = path.replace("\\", "/")
    there = f"{other} is there: w" if os.path.isfile(other) else "W"
    return (
        " Its path has backslashes, which separate folders on Windows only. "
        f"{there}rite / in their place."
    )


def _jpeg2000_bits(head: bytes) -> int:
    """Bits of the first channel, from a JPEG 2000 codestream's SIZ segment."""
    start = head.find(b"\xff\x4f\xff\x51")
    place = start + 42  # two markers, then 38 bytes of the segment
    return (head[place] & 0x7F) + 1 if start >= 0 and place < len(head) else 8


def _deep_mode(image: Image.Image, file_name: str) -> str | None:
    """Pillow's name of a format of more than 8 bits a channel; None for one of 8 or fewer."""
    if image.mode.startswith(_DEEP_MODES):
        return image.mode
    for tile in getattr(image, "tile", ()):  # Pillow's, of an image read from a file
        args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        raw = next((str(x) for x in args if _DEEP_RAW_MODE.match(str(x))), None)
        if raw:
            return raw
        if tile[0] == "ppm" and isinstance(args[-1], int) and args[-1] > 255:
            return f"{image.mode} up to {args[-1]}"
    if image.format == "JPEG2000":
        with open(file_name, "rb") as file:
            bits = _jpeg2000_bits(file.read(1 << 16))
        return f"{image.mode} of {bits} bits" if bits > 8 else None
    return None


def read_header(file_name: str, source: str) -> ImageHeader:
    """What an image file's header tells.

    A PNG's rotation may stand behind its pixels, which are then read too. Greyscale, CMYK,
    palette and transparent images pass: Detectron2 converts them to INPUT.FORMAT. Whether the
    pixels behind the header are whole shows when they are read; see DATALOADER.BAD_IMAGES.

    Args:
        file_name: of the image.
        source: the annotation file that asks for it, for messages.

    Raises:
        DatasetError: it is not there, no image, of more pixels than Pillow decodes, or has more
            than 8 bits a channel.
    """
    where = f"Image {file_name} (in {source})"
    if os.path.exists(file_name) and not os.path.isfile(file_name):
        # Opening a pipe would wait for ever.
        raise DatasetError(f"{where} cannot be read: it is no regular file")
    try:
        with warnings.catch_warnings():
            # Huge images are remarked on by to_dataset_dicts, together.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file_name) as image:
                width, height = image.size
                deep = _deep_mode(image, file_name)
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except FileNotFoundError:
        raise DatasetError(
            f"Image {file_name} is not there, but {source} annotates it.{separator_hint(file_name)}"
            " Add the image, remove its annotations, or correct IMAGES of this data set."
        ) from None
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"{where} is too large: {error}. Scale it down, or cut it into tiles."
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise DatasetError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
    if deep:
        raise DatasetError(
            f"{where} has more than 8 bits a channel (Pillow's mode {deep}), which would be "
            "clipped to white, or cut to nearly black. Convert it to 8 bits, scaled to the range "
            "it uses."
        )
    # Detectron2 rotates images by their EXIF tag when it reads them.
    if orientation in _TRANSPOSED_ORIENTATIONS:
        width, height = height, width
    return ImageHeader(width, height, orientation)


def image_size(file_name: str, source: str) -> tuple[int, int]:
    """Width and height of an image as Detectron2 will read it; errors as of read_header."""
    return read_header(file_name, source).size


def check_shapes(records: Iterable[dict], cfg: CfgNode) -> None:
    """Refuse images so long that their short side vanishes when they are resized for training.

    Args:
        records: dataset dicts.
        cfg: INPUT.MIN_SIZE_* and MAX_SIZE_*.

    Raises:
        DatasetError: names the image, its size and the key.
    """
    limits: list[tuple[str, int]] = [
        (f"INPUT.MAX_SIZE_{mode}", cfg.INPUT[f"MAX_SIZE_{mode}"])
        for mode, sizes in (
            ("TRAIN", cfg.INPUT.MIN_SIZE_TRAIN),
            ("TEST", [cfg.INPUT.MIN_SIZE_TEST]),
        )
        if min(sizes) > 0
    ]
    for record in records:
        short, long = sorted((record["width"], record["height"]))
        for key, limit in limits:
            if short * limit < long:
                raise DatasetError(
                    f"Image {record['file_name']} is {record['width']}x{record['height']}: with "
                    f"{key} {limit} its short side would be less than a pixel. Cut it into tiles, "
                    f"or raise {key}."
                )
