# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What every annotation format is read into, and the way from there to Detectron2's dataset dicts.

Boxes are x0, y0, x1, y1 in pixels of the image as it is read (EXIF rotation applied), continuous
coordinates: the image spans 0..width and 0..height.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode

from ...utils.errors import DatasetError
from ...utils.text import did_you_mean, first_few
from .image_files import HUGE, TINY, image_size

__all__ = [
    "AnnotatedImage",
    "Annotation",
    "Remarks",
    "to_dataset_dicts",
]

logger = logging.getLogger(__name__)


class Annotation(NamedTuple):
    """One object: class name, box, whether to ignore it, further keys for the dataset dict."""

    category: str
    box: tuple[float, float, float, float]
    ignore: bool
    extra: dict[str, Any]


class AnnotatedImage(NamedTuple):
    """One image; size as the annotations state it, source = the file that holds them."""

    image_id: Any
    file_name: str
    size: tuple[int, int]  # width, height
    source: str
    objects: list[Annotation]


@dataclass
class Remarks:
    """What was put right while loading: the files concerned, one entry for each case."""

    degenerate: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    huge: list[str] = field(default_factory=list)
    tiny: list[str] = field(default_factory=list)

    def log(self, name: str) -> None:
        """One warning for each kind that occurred."""
        texts = (
            (self.degenerate, "boxes without width or height inside their image were dropped"),
            (self.resized, "images differ in size from their annotations; the image's is used"),
            (self.outside, "image files lie outside the declared image folder"),
            (self.huge, f"images have more than {HUGE // 10**6} million pixels: scale them down"),
            (self.tiny, f"images have a side of less than {TINY} pixels: nothing can be learnt"),
        )
        for files, text in texts:
            if files:
                logger.warning("%s: %d %s: %s", name, len(files), text, first_few(files))


def _class_index(name: str, classes: Sequence[str], source: str) -> int:
    """Position of a class; DatasetError naming the file when there is no such class."""
    if name in classes:
        return list(classes).index(name)
    raise DatasetError(
        f"{source}: unknown class '{name}'; the classes are {list(classes)}."
        f"{did_you_mean(name, classes)} They come from CLASSES of the data sets in use or, where "
        "none is given, from the training sets, and hold for the test sets too. Correct the "
        "annotation, or list every class in CLASSES of each set."
    )


def to_dataset_dicts(
    images: Sequence[AnnotatedImage], classes: Sequence[str], image_folder: str
) -> tuple[list[dict], Remarks]:
    """Check the images, clip the boxes and drop degenerate ones.

    Args:
        images: what a reader returned.
        classes: names in the order of their indices.
        image_folder: the declared folder; files outside it are remarked on.

    Returns:
        Detectron2's dataset dicts with boxes in XYXY_ABS, and what had to be put right.

    Raises:
        DatasetError: an image is missing or unreadable, or a class is unknown.
    """
    remarks, dicts = Remarks(), []
    folder = os.path.join(os.path.realpath(image_folder), "")
    for image in images:
        size = image_size(image.file_name, image.source)
        _remark_on(image, size, folder, remarks)
        dicts.append(
            {
                "file_name": image.file_name,
                "image_id": image.image_id,
                "width": size[0],
                "height": size[1],
                "annotations": _clip_objects(image, size, classes, remarks),
            }
        )
    return dicts, remarks


def _remark_on(image: AnnotatedImage, size: tuple[int, int], folder: str, remarks: Remarks) -> None:
    """Add what is odd about the file, whose width and height are ``size``.

    Args:
        folder: where it should lie: absolute, with a slash at its end.
    """
    width, height = size
    label = os.path.basename(image.file_name)
    if size != image.size:
        remarks.resized.append(f"{label} ({width}x{height}, not {image.size[0]}x{image.size[1]})")
    if not os.path.realpath(image.file_name).startswith(folder):
        remarks.outside.append(image.file_name)
    if width * height > HUGE:
        remarks.huge.append(label)
    if min(width, height) < TINY:
        remarks.tiny.append(label)


def _clip_objects(
    image: AnnotatedImage, size: tuple[int, int], classes: Sequence[str], remarks: Remarks
) -> list[dict]:
    """The annotations of its dataset dict; what has no area inside the image is left out."""
    annotations = []
    for item in image.objects:
        category = _class_index(item.category, classes, image.source)
        box = np.clip(item.box, 0, (*size, *size)).tolist()
        if box[2] <= box[0] or box[3] <= box[1]:
            remarks.degenerate.append(os.path.basename(image.file_name))
            continue
        annotations.append(
            {
                **item.extra,
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": category,
                "iscrowd": int(item.ignore),
            }
        )
    return annotations
