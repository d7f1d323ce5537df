# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How near a student's detections are to the teacher's: the same regions for every student."""

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask

__all__ = ["BoxAgreement", "compare_boxes"]

LEAST_IOU = 0.5


class BoxAgreement(NamedTuple):
    """A student's detections beside the teacher's confident ones.

    Attributes:
        boxes: of the teacher.
        met: share of these that a detection of the student has IoU 0.5 with, in the same class.
        iou: mean IoU of these pairs; NaN if there is none.
        score_gap: mean absolute difference of their scores.
    """

    boxes: int
    met: float
    iou: float
    score_gap: float


def compare_boxes(
    student: list[dict[str, Any]], teacher: list[dict[str, Any]], least_score: float
) -> BoxAgreement:
    """Pair each box of the teacher with the student's best of its image and class.

    Args:
        student, teacher: detections in the form of COCO's result files.
        least_score: of the teacher's boxes that count.
    """
    kept = _by_place([row for row in teacher if row["score"] >= least_score])
    ours, ious, gaps = _by_place(student), [], []
    for place, rows in kept.items():
        near = ours.get(place)
        if not near:
            continue
        table = mask.iou([x["bbox"] for x in rows], [x["bbox"] for x in near], [0] * len(near))
        best = table.argmax(axis=1)
        for row, index, iou in zip(rows, best, table.max(axis=1)):
            if iou >= LEAST_IOU:
                ious.append(iou)
                gaps.append(abs(row["score"] - near[index]["score"]))
    count = sum(map(len, kept.values()))
    means = [float(np.mean(x)) if x else float("nan") for x in (ious, gaps)]
    return BoxAgreement(count, len(ious) / max(count, 1), *means)


def _by_place(rows: list[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    """(image, category) -> detections."""
    found = defaultdict(list)
    for row in rows:
        found[row["image_id"], row["category_id"]].append(row)
    return found
