# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Reader of COCO's instances JSON: Detectron2's loader behind checks that name the culprit.

https://cocodataset.org/#format-data
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from ...utils.errors import DatasetError
from .coco_validation import REQUIRED, check_annotations, check_lists
from .dataset_dicts import AnnotatedImage, Annotation

__all__ = ["read_coco"]


def _parse_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; DatasetError with file and line when it is malformed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}:{error.lineno}: malformed JSON: {error}") from error
    except RecursionError as error:
        raise DatasetError(f"{path}: malformed JSON: nested too deeply") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: malformed JSON: not UTF-8 text: {error}") from error
    except ValueError as error:
        raise DatasetError(f"{path}: {_describe_long_integer(path)}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: COCO's JSON is an object with the keys {list(REQUIRED)}")
    return content


def _to_annotation(entry: dict[str, Any], names: dict[int, str]) -> Annotation:
    """An annotation as load_coco_json returns it, to ours; masks and keypoints are kept."""
    box = BoxMode.convert(list(map(float, entry["bbox"])), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    extra = {key: entry[key] for key in ("segmentation", "keypoints") if key in entry}
    ignore = bool(entry.get("iscrowd", 0))
    return Annotation(names[entry["category_id"]], tuple(box), ignore, extra)


def read_coco(annotations: Path, images: Path) -> tuple[list[AnnotatedImage], tuple[str, ...]]:
    """Read a COCO-format set; category ids may be any different integers.

    Args:
        annotations: the JSON file.
        images: the folder that "file_name" starts from.

    Returns:
        The images in the order of their ids, and the category names in the order of theirs.

    Raises:
        DatasetError: with the file and the line or entry at fault.
    """
    content = _parse_json(annotations)
    check_lists(content, annotations)
    check_annotations(content, annotations)
    categories = sorted(content["categories"], key=lambda entry: entry["id"])
    names = {entry["id"]: str(entry["name"]) for entry in categories}
    # Without a dataset name the ids stay as they are; they become indices by class name later,
    # as two files of one data set may number the same classes differently.
    read = [
        AnnotatedImage(
            image_id=record["image_id"],
            file_name=record["file_name"],
            size=(record["width"], record["height"]),
            source=str(annotations),
            objects=[_to_annotation(entry, names) for entry in record["annotations"]],
        )
        for record in load_coco_json(str(annotations), str(images))
    ]
    return read, tuple(names.values())


class _Digits(str):
    """An integer as it is written, of more digits than Python converts."""


def _describe_long_integer(path: Path) -> str:
    """Where the first one is: the parser, which stops at it, does not say."""

    def convert(text: str) -> Any:
        try:
            return int(text)
        except ValueError:
            return _Digits(text)

    content = json.loads(path.read_text(encoding="utf-8-sig"), parse_int=convert)
    place, digits = next(_find_digits(content, ""))
    return f"{place} is an integer of {len(digits)} digits"


def _find_digits(node: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, _Digits):
        yield place, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _find_digits(value, f"{place}.{key}" if place else key)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _find_digits(value, f"{place}[{number}]")
