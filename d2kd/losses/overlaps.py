# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Losses between pairs of boxes that never make the host wait for a GPU.

fvcore's GIoU loss looks at the boxes it is given. Here a loss covers every anchor, and a box
without area is an answer like any other.

Shape shorthand in this file:
    R: pairs of boxes
"""

import torch
from torch import Tensor

__all__ = ["giou_loss", "iou_loss"]

# Pixels^2, or an IoU: keeps quotients and logarithms finite.
_EPS = 1e-6


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """One minus the generalized IoU (Rezatofighi et al., arXiv 1902.09630): from 0 to 2.

    Args:
        boxes, targets: (R, 4) xyxy, in any unit that is not much larger than a box.

    Returns:
        (R,).
    """
    intersection, union = _areas(boxes, targets)
    low = torch.minimum(boxes[:, :2], targets[:, :2])
    high = torch.maximum(boxes[:, 2:], targets[:, 2:])
    hull = (high - low).clamp(min=0).prod(dim=1)
    return 1 - intersection / (union + _EPS) + (hull - union) / (hull + _EPS)


def iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Minus the logarithm of the IoU, as FCOS has it (arXiv 1904.01355); flat below 1e-6.

    Args:
        boxes, targets: (R, 4) xyxy, in any unit that is not much larger than a box.

    Returns:
        (R,).
    """
    intersection, union = _areas(boxes, targets)
    return -(intersection / (union + _EPS)).clamp(min=_EPS).log()


def _areas(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Area of the intersection and of the union of each pair, (R,)."""
    low = torch.maximum(boxes[:, :2], targets[:, :2])
    high = torch.minimum(boxes[:, 2:], targets[:, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=1)
    sizes = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(dim=1) for x in (boxes, targets)]
    return intersection, sum(sizes) - intersection
