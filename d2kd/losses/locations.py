# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Losses over all locations of a dense head: their weights and what they are divided by.

Shape shorthand in this file:
    N: images in the batch; R: regions (positives) of all images together
    K: foreground classes; A: anchors per location; H, W: height and width of a level
"""

import torch
from torch import Tensor

from ..structures import DistillStep
from .helpers import full_precision
from .normalizer import normalizer

__all__ = ["NORMALIZERS", "WEIGHTS", "anchor_weights", "location_divisor"]

# How much an anchor counts: see anchor_weights.
WEIGHTS = ("disagreement", "teacher_score")
# What a sum over locations is divided by: see location_divisor.
NORMALIZERS = ("positives", "centerness", "weights")


@torch.no_grad()
def anchor_weights(step: DistillStep, level: str, kind: str) -> Tensor:
    """How much each anchor of a level counts in a loss between boxes.

    Args:
        kind: "disagreement", the largest difference of a class score between student and teacher
            (BCKD, arXiv 2308.14286); "teacher_score", the teacher's best class score
            (CrossKD, arXiv 2306.11369).

    Returns:
        (N, H * W * A), detached; 0 where the detector's own training ignores the anchor.
    """
    valid, logits = step.anchors[level].valid, full_precision(step.teacher.dense_logits[level])
    per_cell = valid.shape[1] // logits[0, 0].numel()
    if kind == "disagreement":
        ours = full_precision(step.student.dense_logits[level])
        scores = (logits.sigmoid() - ours.sigmoid()).abs().unflatten(1, (per_cell, -1)).amax(dim=2)
    else:  # the largest before the sigmoid, which is slower
        scores = logits.unflatten(1, (per_cell, -1)).amax(dim=2).sigmoid()
    return scores.permute(0, 2, 3, 1).flatten(1) * valid


def location_divisor(
    step: DistillStep, kind: str, reduce: bool, weights: Tensor | None = None
) -> Tensor:
    """What to divide a sum over all locations by.

    Args:
        kind: "positives", the number of the student's positives, at least 1; "centerness", the
            sum of their centerness (FCOS's own box normaliser, which CrossKD's release takes);
            "weights", the sum of ``weights`` (CrossKD's release on GFL).
        reduce: the mean over all processes.
        weights: the sum of the anchors' weights over all levels, a scalar.

    Returns:
        A scalar.
    """
    if kind == "weights":
        assert weights is not None
        return normalizer(weights, 1e-6, reduce)
    regions = full_precision(step.regions)
    if kind == "positives":
        return normalizer(regions.new_full((), len(regions)), 1, reduce)
    total = _centerness(regions, full_precision(step.region_gt_boxes)).sum()
    return normalizer(total, 1e-6, reduce)


def _centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """FCOS's centerness (R,) of the centres of ``points`` (R, 4) in ``boxes`` (R, 4).

    FCOS (Tian et al., arXiv 1904.01355, equation 3).
    """
    centres = (points[:, :2] + points[:, 2:]) / 2
    low, high = (centres - boxes[:, :2]).clamp(min=0), (boxes[:, 2:] - centres).clamp(min=0)
    ratios = torch.minimum(low, high) / torch.maximum(low, high).clamp(min=1e-6)
    return ratios.prod(dim=1).sqrt()
