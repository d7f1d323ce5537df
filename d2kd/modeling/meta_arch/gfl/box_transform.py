# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""GFL's box encoding: distances from an anchor's centre, in strides.

Shape shorthand in this file:
    R: pairs of an anchor and a box
"""

from detectron2.modeling.box_regression import Box2BoxTransformLinear
from torch import Tensor

__all__ = ["StrideBoxTransform"]


class StrideBoxTransform(Box2BoxTransformLinear):
    """Boxes as (left, top, right, bottom) distances from an anchor's centre, in strides."""

    def __init__(self, anchor_scale: float):
        """
        Args:
            anchor_scale: side of an anchor in strides; the parent class measures in anchor sides.
        """
        super().__init__(normalize_by_size=True)
        self.anchor_scale = anchor_scale

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Distances (R, 4) from anchors (R, 4) to boxes (R, 4); negative if a centre is outside."""
        return super().get_deltas(src_boxes, target_boxes) * self.anchor_scale

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (R, 4) at distances (R, 4) from anchors (R, 4); negative distances count as 0."""
        return super().apply_deltas(deltas / self.anchor_scale, boxes)
