# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The classification loss: the teacher's class scores on positives or at all locations.

Shape shorthand in this file:
    N: images in the batch; R: regions (positives) of all images together
    K: foreground classes; A: anchors per location; H, W: height and width of a level
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import DistillStep, LossTerms
from .helpers import bind, check_same_size, full_precision, no_autocast, weighted_terms
from .locations import location_divisor
from .masks import MASK_REGISTRY
from .normalizer import masked_means, normalizer

__all__ = [
    "DISTANCES",
    "NORMALIZERS",
    "ClassificationLoss",
    "binary_soft_loss",
    "categorical_soft_loss",
    "quality_focal",
]

DISTANCES = ("cross_entropy", "kl", "quality_focal")
NORMALIZERS = ("positives", "centerness")


def binary_soft_loss(student: Tensor, teacher: Tensor, *, entropy: bool) -> Tensor:
    """Binary cross entropy of each student logit against the teacher's probability.

    With logits throughout: a sigmoid followed by a logarithm overflows in half precision.

    Args:
        student, teacher: logits of any one shape.
        entropy: False subtracts the teacher's entropy, which makes it the KL divergence.

    Returns:
        The same shape.
    """
    target = teacher.sigmoid()
    loss = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    if entropy:
        return loss
    return loss - F.binary_cross_entropy_with_logits(teacher, target, reduction="none")


def categorical_soft_loss(student: Tensor, teacher: Tensor, *, entropy: bool) -> Tensor:
    """Cross entropy of each row's student logits against the teacher's softmax.

    Args:
        student, teacher: (R, K + 1) logits.
        entropy: False subtracts the teacher's entropy, which makes it the KL divergence.

    Returns:
        (R,).
    """
    log_p_teacher = teacher.log_softmax(dim=1)
    log_ratio = student.log_softmax(dim=1)
    if not entropy:
        log_ratio = log_ratio - log_p_teacher
    return -(log_p_teacher.exp() * log_ratio).sum(dim=1)


def quality_focal(student: Tensor, teacher: Tensor) -> Tensor:
    """Binary cross entropy against the teacher's probability, weighted by the difference.

    ``|q - p| BCE(p, q)``, p and q the sigmoids of student and teacher: BCKD (arXiv 2308.14286)
    and CrossKD (arXiv 2306.11369). As in the released code, gradients also flow through the
    weight.

    Args:
        student, teacher: logits of any one shape.

    Returns:
        The same shape.
    """
    difference = (teacher.sigmoid() - student.sigmoid()).abs()
    return difference * binary_soft_loss(student, teacher, entropy=True)


class ClassificationLoss(nn.Module):
    """The teacher's class scores, on positive regions (TAR) or at all locations (FRS, BCKD).

    TAR (arXiv 2006.13108): ``weight / R * sum_i l(z_i^S, z_i^T)`` over positives, l = soft cross
    entropy for softmax heads, binary cross entropy summed over classes for sigmoid heads.
    FRS (arXiv 2111.00674, released code): per level, the binary cross entropy summed over
    channels is averaged under the mask, and levels are summed.
    BCKD (arXiv 2308.14286), CrossKD (arXiv 2306.11369): ``quality_focal`` over all locations,
    summed over classes, locations and levels, is divided by the number of positives.
    All times temperature^2, logits divided by the temperature.
    """

    def __init__(
        self,
        *,
        weight: float,
        where: str,
        distance: str,
        temperature: float,
        mask_args: dict[str, Any] | None = None,
        normalizer: str = "positives",
        reduce: bool = False,
    ):
        """
        Args:
            weight: factor of the whole loss.
            where: "positives", or the name of a registered mask over the dense logits.
            distance: "cross_entropy" or "kl", which differ by a constant, the teacher's entropy;
                or "quality_focal", of sigmoid heads.
            temperature: 1 in all papers.
            mask_args: the mask's parameters.
            normalizer: what "quality_focal" under a mask is divided by, "positives" or
                "centerness" (``location_divisor``).
            reduce: the number of positives, or the masks' sums, are means over all processes.

        Raises:
            KeyError: if the mask is not registered.
            ConfigError: for an unknown parameter of the mask.
            ValueError: for an unknown distance.
        """
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {DISTANCES}, not {distance!r}")
        if normalizer not in NORMALIZERS:
            raise ValueError(f"normalizer must be one of {NORMALIZERS}, not {normalizer!r}")
        self.weight = weight
        self.distance = distance
        self.normalizer = normalizer
        self.temperature = temperature
        self.reduce = reduce
        self.mask = None
        self.where = where
        self.requires = frozenset({"logits"})
        if where != "positives":
            mask_function = MASK_REGISTRY.get(where)
            self.mask = bind(mask_function, mask_args or {})
            self.min_total = mask_function.min_total
            self.requires = frozenset({"dense_logits"}) | mask_function.requires

    def forward(self, step: DistillStep) -> LossTerms:
        """The weighted loss of one batch, attached to the student's logits.

        Raises:
            PairMismatchError: if a level's logits differ in size between student and teacher.
        """
        factor = self.weight * self.temperature**2
        if self.mask is None:
            return LossTerms(factor * self._positives(step), {})
        costs, masks = {}, {}
        for level in step.student.dense_logits:
            costs[level], masks[level] = self.level_maps(level, step)
        if self.distance == "quality_focal":
            divisor = location_divisor(step, self.normalizer, self.reduce)
            sums = {level: (masks[level] * cost).sum() / divisor for level, cost in costs.items()}
            return weighted_terms(sums, factor)
        return weighted_terms(masked_means(costs, masks, self.min_total, self.reduce), factor)

    def _compare(self, student: Tensor, teacher: Tensor, binary: bool) -> Tensor:
        """The distance between logits; of softmax heads (``binary`` False) one for each row."""
        if self.distance == "quality_focal":
            return quality_focal(student, teacher)
        soft_loss = binary_soft_loss if binary else categorical_soft_loss
        return soft_loss(student, teacher, entropy=self.distance == "cross_entropy")

    def _positives(self, step: DistillStep) -> Tensor:
        """Mean over regions; 0, attached, if there are none."""
        with no_autocast(step.student.logits):
            student = full_precision(step.student.logits) / self.temperature
            teacher = full_precision(step.teacher.logits) / self.temperature
            losses = self._compare(student, teacher, step.activation == "sigmoid")
            count = losses.new_full((), len(student))
            return losses.sum() / normalizer(count, 1, self.reduce)

    def level_maps(self, level: str, step: DistillStep) -> tuple[Tensor, Tensor]:
        """Cost and mask of one level's locations, (N, H, W) each, of a loss under a mask.

        Raises:
            PairMismatchError: if the level's logits differ in size between student and teacher.
        """
        student, teacher = step.student.dense_logits[level], step.teacher.dense_logits[level]
        check_same_size(student, teacher, level, slice(None))
        with no_autocast(student):
            student = full_precision(student) / self.temperature
            teacher = full_precision(teacher) / self.temperature
            cost = self._compare(student, teacher, binary=True)
            if self.distance == "quality_focal":
                cost = _of_valid_anchors(cost, step.anchors[level].valid)
            mask = self.mask(step.mask_input(level, student.shape, step.student.dense_logits))
            return cost.sum(dim=1), mask


def _of_valid_anchors(cost: Tensor, valid: Tensor) -> Tensor:
    """(N, A * K, H, W), 0 at the anchors that the detector's training ignores.

    Args:
        valid: (N, H * W * A), of ``LevelAnchors``.
    """
    num_images, channels, height, width = cost.shape
    of_map = valid.view(num_images, height, width, -1).permute(0, 3, 1, 2)  # (N, A, H, W)
    return cost * of_map.repeat_interleave(channels // of_map.shape[1], dim=1)
