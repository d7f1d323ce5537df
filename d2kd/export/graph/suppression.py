# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Non-maximum suppression of fixed shape, which every file format writes in its own way.

Shape shorthand in this file:
    B: sets of boxes, each suppressed alone; C: classes that share a set's boxes; T: boxes of a set
"""

import torch
from torch import Tensor
from torchvision.ops import nms

__all__ = ["keep_by_nms"]


def keep_by_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float
) -> Tensor:
    """Which boxes stay after greedy suppression, class by class.

    TorchScript compiles this function, so it holds none of Python's finer words.

    Args:
        boxes: (B, T, 4), xyxy.
        scores: (B, C, T); those that are not above the threshold neither stay nor suppress.
        iou_threshold: boxes that overlap a better one of their class by more do not stay.
        score_threshold: of the scores.

    Returns:
        (B, C, T) bool.
    """
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for b in range(scores.shape[0]):
        for c in range(scores.shape[1]):
            found = torch.nonzero(scores[b, c] > score_threshold)[:, 0]
            kept = nms(boxes[b][found], scores[b, c][found], iou_threshold)
            keep[b, c, found[kept]] = True
    return keep
