# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How the detectors encode boxes, in the two calls a loss needs: ``decode`` and ``loss``.

Shape shorthand in this file:
    R: regions of all images together
"""

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.layers import ciou_loss, diou_loss
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor, nn

from ...losses.helpers import full_precision
from ...utils.errors import ConfigError

__all__ = ["DeltaBoxCoder", "box_coder_of"]

# Pixels. CIoU compares aspect ratios w / h, so a decoded box without height has no gradient.
_MIN_SIDE = 1e-3

_IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


@dataclass(frozen=True)
class DeltaBoxCoder:
    """Boxes as four deltas of one of Detectron2's box transforms, with the box loss beside it.

    Attributes:
        box2box_transform: Box2BoxTransform, Box2BoxTransformLinear or any object that has
            their ``apply_deltas(deltas (R, 4), regions (R, 4)) -> (R, 4)``.
        loss_type: "smooth_l1" (between deltas) or "giou", "diou", "ciou" (between decoded boxes).
        smooth_l1_beta: where smooth L1 turns from squared to linear, in units of a delta.
    """

    box2box_transform: Any
    loss_type: str = "smooth_l1"
    smooth_l1_beta: float = 0.0

    def __post_init__(self) -> None:
        if self.loss_type != "smooth_l1" and self.loss_type not in _IOU_LOSSES:
            known = ", ".join(["smooth_l1", *_IOU_LOSSES])
            raise ConfigError(
                f"the box loss is {self.loss_type!r}: set the detector's BBOX_REG_LOSS_TYPE to one "
                f"of {known}"
            )

    def decode(self, deltas: Tensor, regions: Tensor) -> Tensor:
        """Turn deltas into boxes.

        Args:
            deltas: (R, 4), any floating type.
            regions: (R, 4), xyxy in pixels of the padded image, with an area.

        Returns:
            (R, 4) boxes, xyxy in pixels of the padded image; float32, or float64 as the deltas
            are if the transform keeps it, which Detectron2's Box2BoxTransform does not.
        """
        return self.box2box_transform.apply_deltas(full_precision(deltas), full_precision(regions))

    def encode(self, boxes: Tensor, regions: Tensor) -> Tensor:
        """Turn boxes into the deltas that ``decode`` turns back.

        Args:
            boxes: (R, 4), xyxy in pixels of the padded image.
            regions: (R, 4), likewise, with an area.

        Returns:
            (R, 4) deltas, float32 or more precise; of a box without an area, those of one of a
            thousandth of a pixel.
        """
        boxes = _with_area(full_precision(boxes))
        return self.box2box_transform.get_deltas(full_precision(regions), boxes)

    def encodes_like(self, box2box_transform: Any) -> bool:
        """Whether deltas of that transform mean the same boxes as this coder's."""
        ours = self.box2box_transform
        return type(ours) is type(box2box_transform) and vars(ours) == vars(box2box_transform)

    def loss(self, deltas: Tensor, target_deltas: Tensor, regions: Tensor) -> Tensor:
        """Compare two sets of deltas by the detector's own box loss.

        Args:
            deltas, target_deltas: (R, 4); the target must arrive detached.
            regions: (R, 4), xyxy in pixels of the padded image, with an area.

        Returns:
            (R,) float32 or more precise, summed over the four coordinates; its sum over the
            regions is what Detectron2's box loss is before its normaliser.
        """
        if self.loss_type == "smooth_l1":
            pairs = full_precision(deltas), full_precision(target_deltas)
            return smooth_l1_loss(*pairs, beta=self.smooth_l1_beta).sum(dim=1)
        boxes = [self.decode(x, regions) for x in (deltas, target_deltas)]
        if self.loss_type == "ciou":
            boxes = [_with_area(x) for x in boxes]
        return _IOU_LOSSES[self.loss_type](*boxes, reduction="none")


def box_coder_of(module: nn.Module) -> DeltaBoxCoder:
    """The box coder of a module that holds Detectron2's box settings.

    Args:
        module: FastRCNNOutputLayers, RetinaNet, FCOS or a module with their attributes
            ``box2box_transform`` and, where it differs from FCOS, ``box_reg_loss_type`` and
            ``smooth_l1_beta``.
    """
    return DeltaBoxCoder(
        box2box_transform=module.box2box_transform,
        # Detectron2's FCOS has no such attribute: its loss is always GIoU (arXiv 2006.09214).
        loss_type=getattr(module, "box_reg_loss_type", "giou"),
        smooth_l1_beta=getattr(module, "smooth_l1_beta", 0.0),
    )


def _with_area(boxes: Tensor) -> Tensor:
    low, high = boxes.split(2, dim=1)
    return torch.cat([low, torch.maximum(high, low + _MIN_SIDE)], dim=1)
