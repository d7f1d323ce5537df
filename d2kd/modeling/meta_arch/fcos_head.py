# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""FCOS's head as it was released, with a learnt scale for each level.

Shape shorthand in this file:
    N: images; C, H, W: channels, height and width of a feature level; K: foreground classes
"""

from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOSHead
from torch import Tensor, nn

__all__ = ["BOX_PREDICTIONS", "CENTERNESS_BRANCHES", "ScaledFCOSHead"]

BOX_PREDICTIONS = ("linear", "scaled", "exp")
CENTERNESS_BRANCHES = ("box", "cls")


class ScaledFCOSHead(FCOSHead):
    """Detectron2's FCOS head with the parts that it leaves out of the released one.

    Released (arXiv 1904.01355, mmdetection's ``fcos_*_gn-head``): distances are the exponent of a
    scaled prediction, in pixels, and centerness stands on the class branch. Improved (mmdetection's
    ``*_center-normbbox-centeronreg-giou``): distances are the scaled prediction in strides,
    negative ones count as 0, and centerness stands on the box branch.
    """

    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        conv_dims: list[int],
        box_prediction: str = "exp",
        centerness_branch: str = "cls",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            box_prediction: "scaled" or "exp", see MODEL.FCOS.BOX_PREDICTION.
            centerness_branch: "box" or "cls", see MODEL.FCOS.CENTERNESS_BRANCH.
            input_shape, conv_dims, kwargs: those of FCOSHead.
        """
        super().__init__(input_shape=input_shape, conv_dims=conv_dims, **kwargs)
        self.box_prediction = box_prediction
        self.centerness_branch = centerness_branch
        self.strides = [shape.stride for shape in input_shape]
        self.scales = nn.Parameter(torch.ones(len(input_shape)))

    def extra_repr(self) -> str:
        """What a printed head says beside its layers."""
        return f"box_prediction={self.box_prediction}, centerness_branch={self.centerness_branch}"

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Run both branches on every level.

        Args:
            features: (N, C, H, W) of each level.

        Returns:
            Class logits (N, K, H, W), distances (N, 4, H, W) in strides and centerness logits
            (N, 1, H, W) of each level.
        """
        in_cls = [self.cls_subnet(x) for x in features]
        in_box = [self.bbox_subnet(x) for x in features]
        in_centerness = in_cls if self.centerness_branch == "cls" else in_box
        logits = [self.cls_score(x) for x in in_cls]
        return logits, self.predict_boxes(in_box), [self.ctrness(x) for x in in_centerness]

    def box_deltas(self, features: list[Tensor]) -> list[Tensor]:
        """The box branch alone: distances (N, 4, H, W) in strides of each level."""
        return self.predict_boxes([self.bbox_subnet(x) for x in features])

    def predict_boxes(self, in_box: list[Tensor]) -> list[Tensor]:
        """Distances (N, 4, H, W) in strides from the box branch's last features of each level."""
        scaled = [self.bbox_pred(x) * scale for x, scale in zip(in_box, self.scales.unbind())]
        if self.box_prediction == "scaled":
            return scaled
        return [x.float().exp() / stride for x, stride in zip(scaled, self.strides)]
