# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How far the detections of two detectors are from each other.

Shape shorthand in this file:
    E, F: detections of one image, expected and found
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor

__all__ = ["Agreement", "compare"]

# Boxes of a class that overlap by less are different detections.
_SAME = 0.5


class Agreement(NamedTuple):
    """The differences over several images.

    Attributes:
        images: number of images.
        detections: number of expected detections.
        unmatched: detections of either side without one of the same class over it.
        largest_box: of a corner's coordinate, in pixels.
        mean_box: the same, the mean over matched detections of each one's largest.
        largest_score, mean_score: a detection without its like counts by how far its score is
            above what the other side leaves out.
        largest_mask: 1 - IoU of two masks; 0 without masks.
    """

    images: int
    detections: int
    unmatched: int
    largest_box: float
    mean_box: float
    largest_score: float
    mean_score: float
    largest_mask: float


class _Differences(NamedTuple):
    """Of one image: of each matched pair, and the scores of the others."""

    boxes: Tensor
    scores: Tensor
    masks: Tensor
    alone: Tensor


def compare(
    expected: Sequence[Instances], found: Sequence[Instances], threshold: float, limit: int
) -> Agreement:
    """Match the detections of each image, and measure the differences.

    Args:
        expected, found: an image each, in the same pixels.
        threshold: scores that are not above it are left out.
        limit: detections of an image, at most.
    """
    each = [_differences(e, f, threshold, limit) for e, f in zip(expected, found, strict=True)]
    boxes, scores, masks, alone = (torch.cat(x) for x in zip(*each))
    scores = torch.cat([scores, alone])
    return Agreement(
        images=len(expected),
        detections=sum(len(x) for x in expected),
        unmatched=len(alone),
        largest_box=_largest(boxes),
        mean_box=_mean(boxes),
        largest_score=_largest(scores),
        mean_score=_mean(scores),
        largest_mask=_largest(masks),
    )


def _differences(e: Instances, f: Instances, threshold: float, limit: int) -> _Differences:
    pairs = list(_match(e, f))
    rows, columns = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    boxes = (e.pred_boxes.tensor[rows] - f.pred_boxes.tensor[columns]).abs().amax(dim=1)
    scores = (e.scores[rows] - f.scores[columns]).abs()
    masks = torch.zeros(0)
    if e.has("pred_masks") and pairs:
        masks = _mask_differences(e.pred_masks[rows], f.pred_masks[columns])
    alone = [_alone(e, rows, f, threshold, limit), _alone(f, columns, e, threshold, limit)]
    return _Differences(boxes, scores, masks, torch.cat(alone))


def _match(e: Instances, f: Instances) -> Iterator[tuple[int, int]]:
    """Pairs (index in e, index in f), the largest overlaps first; each index at most once."""
    iou = pairwise_iou(e.pred_boxes, f.pred_boxes)  # (E, F)
    iou[e.pred_classes[:, None] != f.pred_classes] = 0
    while iou.numel():
        best, index = iou.flatten().max(dim=0)
        if best < _SAME:
            return
        row, column = divmod(index.item(), iou.shape[1])
        iou[row], iou[:, column] = 0, 0
        yield row, column


def _alone(
    ours: Instances, matched: Tensor, theirs: Instances, threshold: float, limit: int
) -> Tensor:
    """How far the scores of our unmatched detections are above what their side leaves out."""
    full = len(theirs) >= limit
    lowest = max(threshold, theirs.scores.min().item()) if full else threshold
    left = torch.ones(len(ours), dtype=torch.bool)
    left[matched] = False
    return (ours.scores[left] - lowest).clamp(min=0)


def _mask_differences(ours: Tensor, theirs: Tensor) -> Tensor:
    both = (ours & theirs).flatten(1).sum(dim=1)
    either = (ours | theirs).flatten(1).sum(dim=1)
    return 1 - both / either.clamp(min=1) * (either > 0) - 1.0 * (either == 0)


def _largest(values: Tensor) -> float:
    return values.max().item() if len(values) else 0.0


def _mean(values: Tensor) -> float:
    return values.mean().item() if len(values) else 0.0
