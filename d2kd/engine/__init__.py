# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The trainer, its hooks and training loops, and the schedule of the distillation losses."""

from .hooks import DistillLossHook, LossRatioHook, build_composed_hooks, build_distill_hooks
from .lazy_trainer import LazyTrainer
from .loss_schedule import build_schedule
from .trainer import DistillTrainer

__all__ = [
    "DistillLossHook",
    "DistillTrainer",
    "LazyTrainer",
    "LossRatioHook",
    "build_composed_hooks",
    "build_distill_hooks",
    "build_schedule",
]
