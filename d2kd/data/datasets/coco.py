# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Reader of COCO's instances JSON: it gives what Detectron2's load_coco_json gives on a clean file.

https://cocodataset.org/#format-data
"""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from ...utils.errors import DatasetError
from .annotated_image import AnnotatedImage, Annotation, ReadSet
from .coco_validation import REQUIRED, check_annotations, check_lists, keypoint_names
from .masks import to_keypoints, to_mask

__all__ = ["parse_json", "read_coco"]


def parse_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file in UTF-8, UTF-16 or UTF-32, whatever the locale.

    Raises:
        DatasetError: it is malformed, or no JSON object.
    """
    try:
        data = path.read_bytes()
        encoding = json.detect_encoding(data)  # by the first bytes; with "-sig" for a mark
        content = json.loads(data.decode(encoding))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}:{error.lineno}: malformed JSON: {error}") from error
    except RecursionError as error:
        raise DatasetError(f"{path}: malformed JSON: nested too deeply") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: malformed JSON: not UTF-8 text: {error}. Save it as UTF-8."
        ) from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise DatasetError(f"{path}: malformed JSON: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: COCO's JSON is an object with the keys {list(REQUIRED)}")
    return content


def _to_annotation(entry: dict[str, Any], size: tuple, names: dict[int, str]) -> Annotation:
    """One entry of "annotations", checked already."""
    x, y, width, height = map(float, entry["bbox"])
    mask, bad_mask = to_mask(entry.get("segmentation"), size)
    extra = {"segmentation": mask, "keypoints": to_keypoints(entry.get("keypoints"))}
    return Annotation(
        category=names[entry["category_id"]],
        box=(x, y, x + width, y + height),
        written=(x, y, width, height),
        ignore=bool(entry.get("iscrowd")),
        number=entry["id"],
        extra={key: value for key, value in extra.items() if value is not None},
        bad_mask=bad_mask,
    )


def read_coco(annotations: Path, images: Path) -> ReadSet:
    """Read a COCO-format set; category ids may be any different integers.

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
    entries = defaultdict(list)
    for entry in content["annotations"]:
        entries[entry["image_id"]].append(entry)
    read = []
    for image in sorted(content["images"], key=lambda entry: entry["id"]):
        size = (image["width"], image["height"])
        objects = [_to_annotation(entry, size, names) for entry in entries[image["id"]]]
        file_name = os.path.join(images, image["file_name"])
        read.append(AnnotatedImage(image["id"], file_name, size, str(annotations), objects))
    return ReadSet(read, tuple(names.values()), keypoint_names(categories, annotations))
