# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Distances: how far the student's feature map is from the teacher's, at each location.

A distance is a pure function ``(student, teacher, **parameters) -> (N, H, W)``: the mean over
channels, scaled so that the plain mean over N, H, W is the published loss. To add one, register
it with ``@DISTANCE_REGISTRY.register()``; configs then choose it by its name.

Shape shorthand in this file:
    N: images in the batch; C, H, W: channels, height and width of a feature level
"""

import torch.nn.functional as F
from fvcore.common.registry import Registry
from torch import Tensor

__all__ = [
    "DISTANCE_REGISTRY",
    "absolute",
    "channel_kl",
    "pearson",
    "squared",
]

DISTANCE_REGISTRY = Registry("DISTANCE")
DISTANCE_REGISTRY.__doc__ = """
Functions ``(student, teacher, **parameters) -> (N, H, W)`` on float32 maps (N, C, H, W) that
measure how far two feature maps are from each other. Configs choose one by its name.
"""


@DISTANCE_REGISTRY.register()
def squared(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference: TAR's, FRS's (there summed over channels) and the plain hint's.

    TAR (arXiv 2006.13108) prints a factor 1/2, which DISTILL.FEATURE.WEIGHT includes here.

    Args:
        student, teacher: (N, C, H, W) float32.

    Returns:
        (N, H, W), mean over channels.
    """
    # mse_loss keeps only its two inputs for the backward pass, (s - t) ** 2 one map more.
    return _mean_over_channels(F.mse_loss(student, teacher, reduction="none"))


@DISTANCE_REGISTRY.register()
def absolute(student: Tensor, teacher: Tensor) -> Tensor:
    """Absolute difference, the robust hint.

    Args:
        student, teacher: (N, C, H, W) float32.

    Returns:
        (N, H, W), mean over channels.
    """
    return _mean_over_channels(F.l1_loss(student, teacher, reduction="none"))


def _mean_over_channels(x: Tensor) -> Tensor:
    """``x.mean(dim=1)`` without its division of a whole (N, C, H, W) map in the backward pass."""
    return x.sum(dim=1) / x.shape[1]


@DISTANCE_REGISTRY.register()
def pearson(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the correlation of the channels: half the squared difference of standard scores.

    PKD (Cao et al., arXiv 2207.02039; released code). Each channel is standardised over N, H, W,
    with the biased deviation, so that the mean is 1 - r (with the released code's unbiased one
    it is off by a factor (M - 1) / M, M = NHW).

    Args:
        student, teacher: (N, C, H, W) float32.

    Returns:
        (N, H, W), mean over channels.
    """
    return 0.5 * squared(_standard_score(student), _standard_score(teacher))


def _standard_score(x: Tensor) -> Tensor:
    """Each channel with mean 0 and variance 1 over N, H, W; 0 where it is constant."""
    if x[:, 0].numel() == 1:
        return x * 0  # batch_norm refuses it: one cell has no deviation
    # The fused kernel takes a third of the time of var_mean and two more maps.
    return F.batch_norm(x, None, None, training=True, eps=1e-8)


@DISTANCE_REGISTRY.register()
def channel_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL divergence between each channel's distributions over locations, teacher first.

    CWD (Shu et al., arXiv 2011.13256, eq. 4; released code): softmax over H x W per image and
    channel, times temperature^2, mean over images and channels. The map is multiplied by H * W,
    because the loss takes a mean over locations where the KL divergence takes a sum.

    Args:
        student, teacher: (N, C, H, W) float32.
        temperature: divides both maps before the softmax.

    Returns:
        (N, H, W), mean over channels. Single locations may be negative, their mean is not.
    """
    log_p_student = (student.flatten(2) / temperature).log_softmax(dim=2)
    log_p_teacher = (teacher.flatten(2) / temperature).log_softmax(dim=2)
    kl = F.kl_div(log_p_student, log_p_teacher, reduction="none", log_target=True).mean(dim=1)
    locations = student.shape[-2] * student.shape[-1]
    return (temperature**2 * locations * kl).view(-1, *student.shape[-2:])
