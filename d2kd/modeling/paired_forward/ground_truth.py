# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Ground truth of a whole batch as two flat tensors, the form in which masks read it."""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

__all__ = ["cat_ground_truth"]


def cat_ground_truth(gt_instances: list[Instances]) -> tuple[Tensor, Tensor]:
    """Concatenate the boxes of all images.

    Returns:
        boxes (B, 4) in pixels of the padded image; index (B,) int64 of the image of each.
    """
    boxes = Boxes.cat([x.gt_boxes for x in gt_instances]).tensor
    index = [torch.full((len(x),), i, device=boxes.device) for i, x in enumerate(gt_instances)]
    return boxes, torch.cat(index)
