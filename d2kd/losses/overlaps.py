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
    ours, theirs = boxes.unbind(1), targets.unbind(1)
    intersection, union = _areas(ours, theirs)
    width = torch.maximum(ours[2], theirs[2]) - torch.minimum(ours[0], theirs[0])
    height = torch.maximum(ours[3], theirs[3]) - torch.minimum(ours[1], theirs[1])
    hull = width * height
    return 1 - intersection / (union + _EPS) + (hull - union) / (hull + _EPS)


def iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Minus the logarithm of the IoU, as FCOS has it (arXiv 1904.01355); flat below 1e-6.

    Args:
        boxes, targets: (R, 4) xyxy, in any unit that is not much larger than a box.

    Returns:
        (R,).
    """
    intersection, union = _areas(boxes.unbind(1), targets.unbind(1))
    return -(intersection / (union + _EPS)).clamp(min=_EPS).log()


Corners = tuple[Tensor, ...]


# The backward pass of Tensor.prod waits for the device to count zeros: multiply columns instead.
def _areas(ours: Corners, theirs: Corners) -> tuple[Tensor, Tensor]:
    """Area of the intersection and of the union of each pair, (R,), from four columns each."""
    width = torch.minimum(ours[2], theirs[2]) - torch.maximum(ours[0], theirs[0])
    height = torch.minimum(ours[3], theirs[3]) - torch.maximum(ours[1], theirs[1])
    intersection = width.clamp(min=0) * height.clamp(min=0)
    return intersection, _area(ours) + _area(theirs) - intersection


def _area(box: Corners) -> Tensor:
    return (box[2] - box[0]).clamp(min=0) * (box[3] - box[1]).clamp(min=0)
