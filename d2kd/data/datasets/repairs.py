# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Boxes that are not inside their image: swapped, clipped or dropped, and every case counted."""

import os
from collections import Counter

import numpy as np

from .annotated_image import AnnotatedImage, Annotation
from .remarks import Remarks

__all__ = ["remark_on_objects", "repair_box"]

# Pixels below which clipping is rounding, and not counted.
ROUNDING = 0.01


def repair_box(
    item: Annotation, size: tuple[int, int], where: str, remarks: Remarks
) -> list[float] | None:
    """The box of an object inside its image; None if nothing of it is.

    Args:
        item: the object as it was written.
        size: width and height of the image.
        where: names the image in remarks.
        remarks: gets one entry for each repair.
    """
    x0, y0, x1, y1 = item.box
    if x1 < x0 or y1 < y0:
        remarks.add("swapped", where)
    box = np.array([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)])
    inside = box.clip(0, (*size, *size))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        remarks.add("dropped", where)
        return None
    amount = float(np.abs(box - inside).max())
    if amount > ROUNDING:
        remarks.add("clipped", where, amount)
    return inside.tolist()


def remark_on_objects(image: AnnotatedImage, detections: int, remarks: Remarks) -> None:
    """Remark on copies among an image's objects, and on more objects than can be detected.

    Args:
        detections: TEST.DETECTIONS_PER_IMAGE; 0 or less is no limit.
    """
    where = os.path.basename(image.file_name)
    counts = Counter((item.category, item.box, item.ignore) for item in image.objects)
    for _ in range(len(image.objects) - len(counts)):
        remarks.add("repeated", where)
    objects = sum(not item.ignore for item in image.objects)
    if 0 < detections < objects:
        remarks.add("crowded", where, objects)
