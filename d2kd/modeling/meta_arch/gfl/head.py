# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""GFL's head: RetinaNet's two branches, the second of which predicts distributions.

Shape shorthand in this file:
    N: images; C, H, W: channels, height and width of a feature level
    K: foreground classes; E: bins per box edge
"""

import math
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor, nn

__all__ = ["GFLHead"]


class GFLHead(RetinaNetHead):
    """RetinaNet's two branches with bins instead of deltas and a learnt scale for each level."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        conv_dims: list[int],
        reg_max: int = 16,
        norm: str = "GN",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            reg_max: the last bin's distance in strides; an edge has ``E = reg_max + 1`` bins.
            input_shape, conv_dims, norm, kwargs: those of RetinaNetHead.
        """
        super().__init__(
            input_shape=input_shape,
            conv_dims=conv_dims,
            num_anchors=1,
            norm=_group_norm if norm == "GN" else norm,
            **kwargs,
        )
        self.num_bins = reg_max + 1
        self.bbox_pred = nn.Conv2d(conv_dims[-1], 4 * self.num_bins, kernel_size=3, padding=1)
        nn.init.normal_(self.bbox_pred.weight, std=0.01)
        nn.init.zeros_(self.bbox_pred.bias)
        self.scales = nn.Parameter(torch.ones(len(input_shape)))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """The constructor's arguments, from ``MODEL.GFL``."""
        node = cfg.MODEL.GFL
        return {
            "input_shape": input_shape,
            "conv_dims": [input_shape[0].channels] * node.NUM_CONVS,
            "num_classes": node.NUM_CLASSES,
            "reg_max": node.REG_MAX,
            "norm": node.NORM,
            "prior_prob": node.PRIOR_PROB,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run both branches on every level.

        Args:
            features: (N, C, H, W) of each level.

        Returns:
            Class logits (N, K, H, W) and bin logits (N, 4 * E, H, W) of each level; the channels of
            the latter are E bins of the left edge, then those of the top, right and bottom edge.
        """
        assert len(features) == self._num_features
        return self.class_logits(features), self.box_bins(features)

    def class_logits(self, features: list[Tensor]) -> list[Tensor]:
        """The class branch alone: (N, K, H, W) of each level."""
        return [self.cls_score(self.cls_subnet(x)) for x in features]

    def box_bins(self, features: list[Tensor]) -> list[Tensor]:
        """The box branch alone: (N, 4 * E, H, W) of each level, in the order of :meth:`forward`."""
        return self.predict_bins([self.bbox_subnet(x) for x in features])

    def predict_bins(self, branch: list[Tensor]) -> list[Tensor]:
        """The last layer of the box branch, from what its convolutions gave on each level."""
        scales = self.scales.unbind()
        return [self.bbox_pred(x) * scale for x, scale in zip(branch, scales)]


def _group_norm(channels: int) -> nn.GroupNorm:
    # Detectron2's "GN" always has 32 groups. In a narrow head these would be of one or two
    # channels, whose statistics on a 1 x 1 level leave nothing of the feature, and 0.6 probes with
    # 1 channel.
    return nn.GroupNorm(math.gcd(32, channels, max(channels // 8, 1)), channels)
