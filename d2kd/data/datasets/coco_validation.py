# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checks of COCO's instances JSON that name the entry at fault; null is as good as absent."""

import reprlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import DatasetError
from ...utils.numbers import is_integer, is_number

__all__ = ["REQUIRED", "check_annotations", "check_lists", "keypoint_names"]


def is_id(value: Any) -> bool:
    """Is it an integer or a string?"""
    return is_integer(value) or isinstance(value, str)


def is_side(value: Any) -> bool:
    """Is it a number of at least 1?"""
    return is_number(value) and value >= 1


def is_text(value: Any) -> bool:
    """Is it a string that is not blank?"""
    return isinstance(value, str) and bool(value.strip())


Kind = tuple[Callable[[Any], bool], str]
ID: Kind = (is_id, "an integer or a string")
SIDE: Kind = (is_side, "a number of pixels, 1 or more")
TEXT: Kind = (is_text, "a string that is not empty")

REQUIRED: dict[str, dict[str, Kind | None]] = {
    "images": {"id": ID, "file_name": TEXT, "width": SIDE, "height": SIDE},
    "annotations": {"id": ID, "image_id": ID, "category_id": ID, "bbox": None},
    "categories": {"id": (is_integer, "an integer"), "name": TEXT},
}


def check_entry(group: str, number: int, entry: Any, path: Path) -> None:
    """One entry of a list has its keys, with values of their kinds."""
    kinds = REQUIRED[group]
    missing = [key for key in kinds if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise DatasetError(f"{path}: {group}[{number}] lacks the keys {missing}")
    for key, kind in kinds.items():
        if kind and not kind[0](entry[key]):
            raise DatasetError(
                f"{path}: {group}[{number}]: '{key}' must be {kind[1]}, not "
                f"{reprlib.repr(entry[key])}"
            )


def check_lists(content: dict[str, Any], path: Path) -> None:
    """Every list is there, not empty, its entries have their keys and different ids of one kind."""
    for group in REQUIRED:
        entries = content.get(group)
        if not isinstance(entries, list) or not entries:
            raise DatasetError(f"{path}: '{group}' must be a list that is not empty")
        seen = set()
        for number, entry in enumerate(entries):
            check_entry(group, number, entry, path)
            if entry["id"] in seen:
                raise DatasetError(f"{path}: duplicate id {entry['id']!r} in '{group}'")
            seen.add(entry["id"])
        if len({isinstance(x, str) for x in seen}) > 1:
            raise DatasetError(f"{path}: some ids in '{group}' are numbers and some are strings")
    names = [entry["name"] for entry in content["categories"]]
    if len(set(names)) < len(names):
        raise DatasetError(f"{path}: two categories have the same name: {sorted(names)}")


def is_box(value: Any) -> bool:
    """Whether this is x, y, width, height."""
    numbers = isinstance(value, (list, tuple)) and all(map(is_number, value))
    return numbers and len(value) == 4


def is_mask(value: Any) -> bool:
    """Whether this is a list of polygons, one polygon, or a run-length encoding."""
    if isinstance(value, dict):
        size = value.get("size")
        return "counts" in value and isinstance(size, list) and all(map(is_integer, size))
    return isinstance(value, list) and (
        all(map(is_number, value))
        or all(isinstance(polygon, list) and all(map(is_number, polygon)) for polygon in value)
    )


def is_keypoints(value: Any) -> bool:
    """Whether this is x, y, visibility, x, y, visibility, ..."""
    return isinstance(value, list) and len(value) % 3 == 0 and all(map(is_number, value))


def problem_of(entry: dict[str, Any], images: set, categories: Collection[int]) -> str | None:
    """What is wrong with an annotation whose required keys are there; None if nothing is."""
    if entry["image_id"] not in images:
        return f"unknown image_id {entry['image_id']!r}"
    if entry["category_id"] not in categories:
        return f"unknown category_id {entry['category_id']!r}; known: {sorted(categories)}"
    if not is_box(entry["bbox"]):
        return f"bbox must be [x, y, width, height] in pixels, not {reprlib.repr(entry['bbox'])}"
    if entry.get("ignore"):
        return "'ignore' is not supported; use 'iscrowd': 1"
    if entry.get("iscrowd") not in (None, 0, 1):
        return f"iscrowd must be 0 or 1, not {reprlib.repr(entry['iscrowd'])}"
    if not is_mask(entry.get("segmentation") or []):
        return "segmentation must be a list of polygons, or an object with 'counts' and 'size'"
    if not is_keypoints(entry.get("keypoints") or []):
        return "keypoints must be a list of x, y, visibility, ..."
    return None


def check_annotations(content: dict[str, Any], path: Path) -> None:
    """Annotations refer to images and categories that exist, and have a box."""
    images = {entry["id"] for entry in content["images"]}
    categories = {entry["id"] for entry in content["categories"]}
    for entry in content["annotations"]:
        problem = problem_of(entry, images, categories)
        if problem:
            raise DatasetError(f"{path}: annotation with id {entry['id']!r}: {problem}")


def keypoint_names(categories: Sequence[dict[str, Any]], path: Path) -> tuple[str, ...]:
    """The names under "keypoints" of the categories; empty where none has any.

    Raises:
        DatasetError: they are no list of different names, or not the same for every category.
    """
    found = [entry["keypoints"] for entry in categories if entry.get("keypoints")]
    for names in found:
        if not isinstance(names, list) or not all(map(is_text, names)):
            raise DatasetError(f"{path}: 'keypoints' of a category must be a list of names")
        if len(set(names)) < len(names) or names != found[0]:
            raise DatasetError(
                f"{path}: 'keypoints' must be different names, the same for every category that "
                f"has some; not {reprlib.repr(names)}"
            )
    return tuple(found[0]) if found else ()
