# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Masks (where), distances (how far), and the distillation losses made of both.

Only the maths (masks and distances) is exported here. The loss modules read
:mod:`d2kd.structures`, which itself reads the masks: import them from their own files,
:mod:`.feature`, :mod:`.classification` and :mod:`.regression`.
"""

from ..structures import MaskInput
from .distances import DISTANCE_REGISTRY, absolute, channel_kl, pearson, squared
from .masks import MASK_REGISTRY, gaussian, register_mask, richness, uniform
from .normalizer import masked_means
from .ssim.distance import ssim

__all__ = [
    "DISTANCE_REGISTRY",
    "MASK_REGISTRY",
    "MaskInput",
    "absolute",
    "channel_kl",
    "gaussian",
    "masked_means",
    "pearson",
    "register_mask",
    "richness",
    "squared",
    "ssim",
    "uniform",
]
