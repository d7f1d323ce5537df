"""
Reader of COCO's instances JSON: Detectron2's loader behind checks that name the culprit.

https://cocodataset.org/#format-data
"""

import json
import math
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from .errors import DatasetError
from .records import AnnotatedImage, Annotation

REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def parse_json(path: Path) -> Dict[str, Any]:
    """The JSON object of a file; DatasetError with file and line when it is malformed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}:{error.lineno}: malformed JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: malformed JSON: not UTF-8 text: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: COCO's JSON is an object with the keys {list(REQUIRED)}")
    return content


def check_lists(content: Dict[str, Any], path: Path) -> None:
    """Every list is there, not empty, its entries have their keys and different ids."""
    for group, keys in REQUIRED.items():
        entries = content.get(group)
        if not isinstance(entries, list) or not entries:
            raise DatasetError(f"{path}: '{group}' must be a list that is not empty")
        seen = set()
        for number, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise DatasetError(f"{path}: {group}[{number}] lacks the keys {missing}")
            if entry["id"] in seen:
                raise DatasetError(f"{path}: duplicate id {entry['id']!r} in '{group}'")
            seen.add(entry["id"])
    names = [entry["name"] for entry in content["categories"]]
    if len(set(names)) < len(names):
        raise DatasetError(f"{path}: two categories have the same name: {sorted(names)}")


def is_box(value: Any) -> bool:
    """Whether this is x, y, width, height."""
    numbers = isinstance(value, Sequence) and all(isinstance(v, (int, float)) for v in value)
    return numbers and len(value) == 4 and all(math.isfinite(v) for v in value)


def check_annotations(content: Dict[str, Any], path: Path) -> None:
    """Annotations refer to images and categories that exist, and have a box."""
    images = {entry["id"] for entry in content["images"]}
    categories = {entry["id"] for entry in content["categories"]}
    for entry in content["annotations"]:
        problem = None
        if entry["image_id"] not in images:
            problem = f"unknown image_id {entry['image_id']!r}"
        elif entry["category_id"] not in categories:
            problem = f"unknown category_id {entry['category_id']!r}; known: {sorted(categories)}"
        elif not is_box(entry["bbox"]):
            problem = f"bbox must be [x, y, width, height] in pixels, not {entry['bbox']!r}"
        elif entry.get("ignore"):
            problem = "'ignore' is not supported; use 'iscrowd': 1"
        if problem:
            raise DatasetError(f"{path}: annotation with id {entry['id']!r}: {problem}")


def to_annotation(entry: Dict[str, Any], names: Dict[int, str]) -> Annotation:
    """An annotation as load_coco_json returns it, to ours; masks and keypoints are kept."""
    box = BoxMode.convert(list(map(float, entry["bbox"])), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    extra = {key: entry[key] for key in ("segmentation", "keypoints") if key in entry}
    ignore = bool(entry.get("iscrowd", 0))
    return Annotation(names[entry["category_id"]], tuple(box), ignore, extra)


def read_coco(annotations: Path, images: Path) -> Tuple[List[AnnotatedImage], Tuple[str, ...]]:
    """
    Read a COCO-format set; category ids may be any different integers.

    Args:
        annotations: the JSON file.
        images: the folder that "file_name" starts from.

    Returns:
        The images in the order of their ids, and the category names in the order of theirs.

    Raises:
        DatasetError: with the file and the line or entry at fault.
    """
    content = parse_json(annotations)
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
            objects=[to_annotation(entry, names) for entry in record["annotations"]],
        )
        for record in load_coco_json(str(annotations), str(images))
    ]
    return read, tuple(names.values())
