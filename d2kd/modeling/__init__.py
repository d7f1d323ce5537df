# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Detectors, and the meta-architecture that runs a student and its teacher on each batch."""

from . import backbone  # noqa: F401  registers timm's networks
from .build import load_teacher
from .compose import DistillLoss, feature_loss
from .distiller import Distiller
from .loss_hooks import LOSS_PREFIX, split_losses
from .meta_arch import fcos, gfl  # noqa: F401  registers meta-architectures
from .paired_forward import dense, features, rcnn  # noqa: F401  registers the paired forwards
from .paired_forward.registry import PAIR_FORWARD_REGISTRY
from .teacher import FrozenTeacher

__all__ = [
    "LOSS_PREFIX",
    "PAIR_FORWARD_REGISTRY",
    "DistillLoss",
    "Distiller",
    "FrozenTeacher",
    "feature_loss",
    "load_teacher",
    "split_losses",
]
