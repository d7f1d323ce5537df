# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Floor 5: schedules, hooks and the trainer."""

from .hooks import DistillLossHook, LossRatioHook, build_distill_hooks
from .loss_schedule import build_schedule
from .trainer import DistillTrainer

__all__ = [
    "DistillLossHook",
    "DistillTrainer",
    "LossRatioHook",
    "build_distill_hooks",
    "build_schedule",
]
