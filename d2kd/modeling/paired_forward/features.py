# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The paired forward of any detector with a backbone: its features are compared, nothing else.

Shape shorthand in this file:
    N: images; B: ground-truth boxes; C, H, W: channels, height and width of a feature level
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...structures import DetectorOutputs, DistillStep
from ..teacher import FrozenTeacher
from .ground_truth import cat_ground_truth
from .recorders import BackboneRecorder, in_place_of
from .registry import PAIR_FORWARD_REGISTRY, RequiredOutputs

__all__ = ["describe_batch", "forward_pair_features", "no_regions"]


@PAIR_FORWARD_REGISTRY.register()
def forward_pair_features(
    student: nn.Module, teacher: FrozenTeacher, batch: list[dict], required: RequiredOutputs
) -> tuple[dict[str, Tensor], DistillStep]:
    """Run the student's own training forward, and the teacher's backbone.

    Args:
        student: in training mode; of any class that calls its ``backbone`` once.
        teacher: of any class.
        batch: what the data loader gave.
        required: features alone.

    Returns:
        dict of the student's own losses; DistillStep without regions.
    """
    backbone = BackboneRecorder(student.backbone)
    with in_place_of(student, "backbone", backbone):
        losses = student(batch)
    features, images = backbone.features(), backbone.images(batch)
    step = DistillStep(
        student=DetectorOutputs(features),
        teacher=DetectorOutputs(teacher.features(batch, images)),
        **describe_batch(student, batch, images.tensor),
        **no_regions(images.tensor),
    )
    return losses, step


def describe_batch(student: nn.Module, batch: list[dict], like: Tensor) -> dict[str, Any]:
    """The fields of a DistillStep that say of the batch what masks may look at.

    Args:
        like: a tensor on the device where they belong.
    """
    device = like.device
    gt_boxes = torch.empty(0, 4, device=device)
    gt_image = torch.empty(0, dtype=torch.int64, device=device)
    if "instances" in batch[0]:  # not of a segmentor's
        gt_boxes, gt_image = cat_ground_truth([x["instances"].to(device) for x in batch])
    strides = {name: spec.stride for name, spec in student.backbone.output_shape().items()}
    return {
        **{"num_images": len(batch), "strides": strides},
        **{"gt_boxes": gt_boxes, "gt_image": gt_image},
    }


def no_regions(like: Tensor) -> dict[str, Any]:
    """The fields of a DistillStep about regions, where no loss reads any."""
    none = torch.empty(0, 4, device=like.device)
    labels = torch.empty(0, dtype=torch.int64, device=like.device)
    return {
        **{"regions": none, "region_gt_boxes": none, "labels": labels},
        **{"activation": "", "box_coder": None},
    }
