# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The further FPN levels of GFL.

Shape shorthand in this file:
    N: images; C, H, W: channels, height and width of a feature level
"""

from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor

__all__ = ["LinearP6P7"]


class LinearP6P7(LastLevelP6P7):
    """P6 and P7 as two convolutions without a ReLU between them, as GFL has them.

    RetinaNet and FCOS have the ReLU. The parameters are the same.
    """

    def forward(self, feature: Tensor) -> list[Tensor]:
        """From (N, C, H, W) to P6 of half its size and P7 of a quarter."""
        p6 = self.p6(feature)
        return [p6, self.p7(p6)]
