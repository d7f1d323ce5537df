# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The classification loss: the teacher's soft labels on positives or under a mask.

Shape shorthand in this file:
    N: images in the batch; R: regions (positives) of all images together
    K: foreground classes; A: anchors per location; H, W: height and width of a level
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import DistillStep, LossTerms
from .helpers import bind, check_same_size, full_precision, no_autocast, weighted_terms
from .masks import MASK_REGISTRY
from .normalizer import masked_means, normalizer

__all__ = ["DISTANCES", "ClassificationLoss", "binary_soft_loss", "categorical_soft_loss"]

DISTANCES = ("cross_entropy", "kl")


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


class ClassificationLoss(nn.Module):
    """Soft labels, on positive regions (TAR) or over all dense locations under a mask (FRS).

    TAR (arXiv 2006.13108): ``weight / R * sum_i l(z_i^S, z_i^T)`` over positives, l = soft cross
    entropy for softmax heads, binary cross entropy summed over classes for sigmoid heads.
    FRS (arXiv 2111.00674, released code): per level, the binary cross entropy summed over
    channels is averaged under the mask, and levels are summed.
    Both times temperature^2, logits divided by the temperature.
    """

    def __init__(
        self,
        *,
        weight: float,
        where: str,
        distance: str,
        temperature: float,
        mask_args: dict[str, Any] | None = None,
        reduce: bool = False,
    ):
        """
        Args:
            weight: factor of the whole loss.
            where: "positives", or the name of a registered mask over the dense logits.
            distance: "cross_entropy" or "kl"; they differ by a constant, the teacher's entropy.
            temperature: 1 in both papers.
            mask_args: the mask's parameters.
            reduce: the number of positives, or the masks' sums, are means over all processes.

        Raises:
            KeyError: if the mask is not registered.
            ConfigError: for an unknown parameter of the mask.
            ValueError: for an unknown distance.
        """
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {DISTANCES}, not {distance!r}")
        self.weight = weight
        self.entropy = distance == "cross_entropy"
        self.temperature = temperature
        self.reduce = reduce
        self.mask = None
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
            costs[level], masks[level] = self._level(level, step)
        return weighted_terms(masked_means(costs, masks, self.min_total, self.reduce), factor)

    def _positives(self, step: DistillStep) -> Tensor:
        """Mean over regions; 0, attached, if there are none."""
        with no_autocast(step.student.logits):
            student = full_precision(step.student.logits) / self.temperature
            teacher = full_precision(step.teacher.logits) / self.temperature
            binary = step.activation == "sigmoid"
            soft_loss = binary_soft_loss if binary else categorical_soft_loss
            losses = soft_loss(student, teacher, entropy=self.entropy)
            count = losses.new_full((), len(student))
            return losses.sum() / normalizer(count, 1, self.reduce)

    def _level(self, level: str, step: DistillStep) -> tuple[Tensor, Tensor]:
        """Cost and mask of one level's locations, (N, H, W) each."""
        student, teacher = step.student.dense_logits[level], step.teacher.dense_logits[level]
        check_same_size(student, teacher, level, slice(None))
        with no_autocast(student):
            student = full_precision(student) / self.temperature
            teacher = full_precision(teacher) / self.temperature
            cost = binary_soft_loss(student, teacher, entropy=self.entropy).sum(dim=1)
            return cost, self.mask(step.mask_input(level, student.shape, step.student.dense_logits))
