# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""COCO's masks and keypoints as load_coco_json returns them, and why a mask cannot be used."""

from typing import Any

from pycocotools import mask as mask_utils

from ...utils.numbers import is_integer, is_number

__all__ = ["mask_extent", "to_keypoints", "to_mask"]

# Pixels of a mask that pycocotools counts.
_MOST_PIXELS = 2**32


def to_mask(value: Any, size: tuple[float, float]) -> tuple[Any, str]:
    """A mask for the dataset dict, and why there is none though one was written.

    Args:
        value: "segmentation" as the file has it, of a right kind; None or empty for no mask.
        size: width and height of the image as the file states them.

    Returns:
        Polygons of 3 points or more, or a compressed run-length encoding; None without a mask.
        The reason is empty if the mask can be used, or if none was written.
    """
    if not value:
        return None, ""
    if isinstance(value, dict):
        return _to_rle(value, size)
    if all(map(is_number, value)):
        value = [value]  # one polygon, without the list around it
    polygons = [x for x in value if len(x) % 2 == 0 and len(x) >= 6]
    return (polygons, "") if polygons else (None, "no polygon of it has 3 points or more")


def mask_extent(mask: Any) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of what ``to_mask`` returned, in pixels."""
    if isinstance(mask, dict):
        x, y, width, height = mask_utils.toBbox(mask).tolist()
        return x, y, x + width, y + height
    xs = [x for polygon in mask for x in polygon[0::2]]
    ys = [y for polygon in mask for y in polygon[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def _to_rle(value: dict[str, Any], size: tuple[float, float]) -> tuple[Any, str]:
    """A run-length encoding, compressed; checked here, as pycocotools trusts what it is given."""
    counts, shape = value["counts"], value["size"]
    if tuple(shape) != (size[1], size[0]):
        return None, f"its 'size' {shape} is not its image's [{size[1]:g}, {size[0]:g}]"
    runs = counts if isinstance(counts, list) else _decode_runs(counts)
    pixels = shape[0] * shape[1]
    if not all(is_integer(x) and x >= 0 for x in runs) or sum(runs) != pixels or not runs:
        return None, "its 'counts' do not add up to its image"
    if pixels >= _MOST_PIXELS:
        return None, "its image has too many pixels"
    if isinstance(counts, list):
        return mask_utils.frPyObjects(value, *shape), ""
    return value, ""


def _decode_runs(text: Any) -> list[int]:
    """The runs in a compressed encoding; empty where it is none.

    Each run is written in groups of 5 bits, the lowest first, as characters from '0' on: bit 5 says
    that another group follows, and bit 4 of the last is the sign. From the fourth on, a run is
    written as its difference from the one two before it.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text if isinstance(text, str) else "":
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:
            return []
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        value -= (1 << shift) if group & 0x10 else 0
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return [] if shift else runs


def to_keypoints(value: Any) -> list[float] | None:
    """Keypoints for the dataset dict, from pixel indices to coordinates; None if absent."""
    if not value:
        return None
    return [x if place % 3 == 2 else x + 0.5 for place, x in enumerate(value)]
