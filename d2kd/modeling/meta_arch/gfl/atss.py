# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Adaptive training sample selection: which anchors are matched to which ground-truth box.

Shape shorthand in this file:
    B: ground-truth boxes of one image; A: anchors of all levels; P: anchors of one level
    T: candidates of each box, at most ``topk`` from every level
"""

import torch
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

__all__ = ["atss_match"]

# Pixels between an anchor's centre and the nearest edge of its box, as in the released code.
_MIN_INSIDE = 0.01


@torch.no_grad()
def atss_match(anchors: list[Boxes], gt_boxes: Boxes, topk: int = 9) -> Tensor:
    """Match every anchor with at most one ground-truth box by ATSS (arXiv 1912.02424, algorithm 1).

    A box's candidates are the ``topk`` anchors of each level nearest to its centre; positive are
    those whose IoU reaches the candidates' mean plus (unbiased) standard deviation and whose centre
    lies inside the box. An anchor wanted by several boxes goes to the one with the highest IoU.
    Ties go to the earlier anchor and the earlier box on every device. A box that holds no anchor's
    centre gets no anchor.

    Args:
        anchors: a level each, one anchor per location, xyxy in pixels of the padded image.
        gt_boxes: (B, 4) in the same pixels; B may be 0.
        topk: candidates from each level, 9 in the paper.

    Returns:
        (A,) int64: the index of the matched box, or -1.
    """
    every_anchor = Boxes.cat(anchors)
    if len(gt_boxes) == 0:
        return torch.full((len(every_anchor),), -1, device=every_anchor.device)
    candidates = _nearest(anchors, gt_boxes, topk)  # (B, T)
    ious = _candidate_ious(every_anchor, gt_boxes, candidates)
    inside = _centres_inside(every_anchor.get_centers()[candidates], gt_boxes.tensor)
    positive = inside & (ious >= _threshold(ious))
    # Kept apart from 0, which is the IoU of a candidate that hardly touches its box.
    wanted = torch.where(positive, ious, torch.full_like(ious, -1))
    quality = ious.new_full((len(gt_boxes), len(every_anchor)), -1).scatter_(1, candidates, wanted)
    matched = quality.argmax(dim=0)  # argmax and not max: only it promises the first of equals
    return torch.where(quality.amax(dim=0) >= 0, matched, torch.full_like(matched, -1))


def _nearest(anchors: list[Boxes], gt_boxes: Boxes, topk: int) -> Tensor:
    """Indices (B, T) into all anchors of the nearest ones of each level."""
    centres = gt_boxes.get_centers()
    first, found = 0, []
    for level in anchors:
        offset = centres[:, None] - level.get_centers()[None]  # (B, P, 2)
        # A stable sort and not topk: centres often lie midway between cells, and equal distances
        # must be ordered alike on every device.
        order = offset.square().sum(dim=2).sort(dim=1, stable=True).indices
        found.append(order[:, :topk] + first)
        first += len(level)
    return torch.cat(found, dim=1)


def _candidate_ious(anchors: Boxes, gt_boxes: Boxes, candidates: Tensor) -> Tensor:
    """IoU (B, T) of each box with its own candidates; all (B, A) pairs are never computed."""
    repeated = gt_boxes.tensor.repeat_interleave(candidates.shape[1], dim=0)
    return matched_pairwise_iou(anchors[candidates.flatten()], Boxes(repeated)).view_as(candidates)


def _centres_inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """Whether candidates' centres (B, T, 2) lie inside their boxes (B, 4): (B, T)."""
    low, high = boxes[:, None].split(2, dim=2)
    return torch.cat([centres - low, high - centres], dim=2).amin(dim=2) > _MIN_INSIDE


def _threshold(ious: Tensor) -> Tensor:
    """Mean plus standard deviation of the candidates' IoU (B, T), as (B, 1)."""
    mean = ious.mean(dim=1, keepdim=True)
    # The deviation of a single candidate is 0 / 0.
    return mean + ious.std(dim=1, keepdim=True) if ious.shape[1] > 1 else mean
