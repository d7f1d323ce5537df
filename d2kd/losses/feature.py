# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The feature loss: a distance between adapted student and teacher features, under a mask.

Shape shorthand in this file:
    N: images in the batch; C, H, W: channels (of the teacher), height and width of a feature level
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from ..structures import DistillStep, LossTerms
from ..utils.errors import ConfigError
from .distances import DISTANCE_REGISTRY
from .helpers import bind, check_same_size, full_precision, no_autocast, weighted_terms
from .masks import MASK_REGISTRY
from .normalizer import masked_means

__all__ = ["CHANNELS", "FeatureLoss", "LevelMaps"]

CHANNELS = ("mean", "sum")


class LevelMaps(NamedTuple):
    """One level as the loss compares it.

    Attributes:
        student: (N, C, H, W) after the adapter.
        teacher: (N, C, H, W).
        cost: (N, H, W), their distance.
        mask: (N, H, W), how much each cell of it counts.
    """

    student: Tensor
    teacher: Tensor
    cost: Tensor
    mask: Tensor


class FeatureLoss(nn.Module):
    """``weight * sum_levels sum(M * d(phi(S), T)) / max(sum(M), min_total)``.

    TAR is gaussian x squared, FRS richness x squared with summed channels, the structural
    distillation uniform x ssim; any mask goes with any distance.
    """

    def __init__(
        self,
        *,
        weight: float,
        mask: str,
        mask_args: dict[str, Any],
        distance: str,
        distance_args: dict[str, Any],
        channels: str,
        adapters: nn.ModuleDict,
        reduce: bool = False,
    ):
        """
        Args:
            weight: factor of the whole loss.
            mask, mask_args: a registered mask's name and its parameters.
            distance, distance_args: a registered distance's name and its parameters.
            channels: "mean" makes the weight independent of the width C; "sum" as FRS publishes.
            adapters: level name -> module from the student's to the teacher's channels (phi).
                Its keys are the levels that are distilled.
            reduce: the masks' sums are means over all processes, not each its own.

        Raises:
            KeyError: if the mask or the distance is not registered.
            ConfigError: for an unknown parameter, or without any level.
            ValueError: for an unknown ``channels``.
        """
        super().__init__()
        if channels not in CHANNELS:
            raise ValueError(f"channels must be 'mean' or 'sum', not {channels!r}")
        if not len(adapters):
            raise ConfigError("a feature loss needs at least one level: set DISTILL.FEATURE.LEVELS")
        mask_function = MASK_REGISTRY.get(mask)
        self.mask_name, self.distance_name = mask, distance
        self.weight = weight
        self.sum_channels = channels == "sum"
        self.adapters = adapters
        self.mask = bind(mask_function, mask_args)
        self.min_total = mask_function.min_total
        self.reduce = reduce
        self.distance = bind(DISTANCE_REGISTRY.get(distance), distance_args)
        self.requires = frozenset({"features"}) | mask_function.requires

    def forward(self, step: DistillStep) -> LossTerms:
        """The weighted loss of one batch, attached to the student's features and the adapters.

        Raises:
            PairMismatchError: if a level's sizes differ between student and teacher.
        """
        costs, masks = {}, {}
        for level in self.adapters:
            maps = self.level_maps(level, step)
            costs[level], masks[level] = maps.cost, maps.mask
        losses = masked_means(costs, masks, self.min_total, self.reduce)
        return weighted_terms(losses, self.weight)

    def level_maps(self, level: str, step: DistillStep) -> LevelMaps:
        """What is compared on one level, and how.

        Raises:
            PairMismatchError: if the level's sizes differ between student and teacher.
        """
        # The adapter is a layer of the network, which autocast may cast; what follows is a loss.
        student = self.adapters[level](step.student.features[level])
        # A teacher may compute channels last; mixed layouts would make the distance slow.
        teacher = step.teacher.features[level].contiguous()
        check_same_size(student, teacher, level, slice(None))
        with no_autocast(student):
            cost = self.distance(full_precision(student), full_precision(teacher))
            if self.sum_channels:
                cost = cost * student.shape[1]
            return LevelMaps(student, teacher, cost, self.level_mask(level, step))

    def level_mask(self, level: str, step: DistillStep) -> Tensor:
        """How much each cell of a level counts, (N, H, W)."""
        size = step.student.features[level].shape
        return self.mask(step.mask_input(level, size, self.adapters))
