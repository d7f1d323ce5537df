# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The steps between a head's outputs and detections, on tensors of fixed shape.

Shape shorthand in this file:
    N: images; T: boxes of an image; K: foreground classes; D: detections of an image, at most
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Detections", "Nms", "best", "clip", "gather_rows", "not_empty", "prepare_images"]

# boxes, scores, IoU threshold, score threshold -> which stay; see ``keep_by_nms``.
Nms = Callable[[Tensor, Tensor, float, float], Tensor]


class Detections(NamedTuple):
    """The detections of each image, the best first; rows with score 0 hold nothing.

    Attributes:
        boxes: (N, D, 4), xyxy in pixels of the image that was given.
        scores: (N, D) in [0, 1].
        classes: (N, D) int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def prepare_images(
    images: Tensor, image_sizes: Tensor, mean: Tensor, std: Tensor, divisor: int
) -> Tensor:
    """Normalise images, and set what is outside of them to 0 as Detectron2 pads them.

    Args:
        images: (N, C, H, W) uint8 or float; an image lies in the upper left corner of its canvas.
        image_sizes: (N, 2) int64, height and width of the images within the canvas.
        mean, std: (C, 1, 1), of a pixel.
        divisor: the canvas grows to a multiple of it, downwards and to the right.

    Returns:
        (N, C, H, W) float32, with H and W as they grew.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < image_sizes[:, :1]
    columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    x = (images.to(torch.float32) - mean) / std
    x = torch.where(inside, x, torch.zeros_like(x))
    return F.pad(x, (0, -width % divisor, 0, -height % divisor)) if divisor > 1 else x


def clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes (N, T, 4) within images of these (N, 2) heights and widths."""
    high = image_sizes.flip(1).to(boxes.dtype)[:, None]  # (N, 1, 2): width, height
    low = torch.zeros_like(high)
    x0y0 = torch.minimum(torch.maximum(boxes[..., :2], low), high)
    x1y1 = torch.minimum(torch.maximum(boxes[..., 2:], low), high)
    return torch.cat([x0y0, x1y1], dim=-1)


def not_empty(boxes: Tensor, threshold: float = 0.0) -> Tensor:
    """Which boxes (..., 4) have both sides above the threshold."""
    return ((boxes[..., 2:] - boxes[..., :2]) > threshold).all(dim=-1)


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Of rows (N, T, C), those of an index (N, D): (N, D, C)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest scores of (N, T) in falling order, and their indices: (N, D) each."""
    size = scores.shape[1]
    # A tensor while a graph is traced: the graph must ask anew for each size of image.
    most = size.clamp(max=count) if isinstance(size, Tensor) else min(count, size)
    return scores.topk(most, dim=1)
