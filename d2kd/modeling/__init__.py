# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Floor 4: detectors, and how a student and its teacher are run side by side."""

from . import backbone  # noqa: F401  registers timm's networks
from .distiller import LOSS_PREFIX, Distiller
from .meta_arch import fcos, gfl  # noqa: F401  registers meta-architectures
from .paired_forward import dense, rcnn  # noqa: F401  registers the paired forwards
from .paired_forward.registry import register_paired_forward
from .roi_heads import SharedProposalROIHeads
from .teacher import FrozenTeacher

__all__ = [
    "LOSS_PREFIX",
    "Distiller",
    "FrozenTeacher",
    "SharedProposalROIHeads",
    "register_paired_forward",
]
