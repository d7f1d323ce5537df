# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What an image file's header tells: is it there, is it an image, can detectors read it."""

import warnings
from collections.abc import Iterable

from detectron2.config import CfgNode
from PIL import Image

from ...utils.errors import DatasetError

__all__ = ["HUGE", "TINY", "check_shapes", "image_size"]

# Side in pixels below which no object can be made out.
TINY = 8
# Pixels of an image above which decoding takes seconds and gigabytes.
HUGE = 50_000_000
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
# Pillow's modes of more than 8 bits a channel. Converted to RGB, as Detectron2 does, they are
# clipped at 255: nearly everything becomes white, without a word.
_DEEP_MODES = ("I", "F")


def image_size(file_name: str, source: str) -> tuple[int, int]:
    """Width and height of an image as Detectron2 will read it, from the file's header alone.

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
    try:
        with warnings.catch_warnings():
            # Huge images are remarked on by to_dataset_dicts, together.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file_name) as image:
                width, height, mode = *image.size, image.mode
                orientation = image.getexif().get(_EXIF_ORIENTATION)
    except FileNotFoundError:
        raise DatasetError(
            f"Image {file_name} is not there, but {source} annotates it. Add the image, remove its "
            "annotations, or correct IMAGES of this data set."
        ) from None
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"{where} is too large: {error}. Scale it down, or cut it into tiles."
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{where} cannot be read: {error}") from error
    if mode.startswith(_DEEP_MODES):
        raise DatasetError(
            f"{where} has more than 8 bits a channel (Pillow's mode {mode}), which would be "
            "clipped to white. Convert it to 8 bits, scaled to the range it uses."
        )
    # Detectron2 rotates images by their EXIF tag when it reads them.
    return (height, width) if orientation in _TRANSPOSED_ORIENTATIONS else (width, height)


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
