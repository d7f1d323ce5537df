# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What is called in a Distiller's training forward, and the names of the losses that it returns."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from ..structures import DistillStep, LossTerms

__all__ = ["LOSS_PREFIX", "LossHook", "StepHook", "TermsHook", "split_losses"]

# Before a distillation loss's name in what ``forward`` returns; the console prints "loss" ones.
LOSS_PREFIX = "loss_distill_"
# Called with (loss module, step); returns the module's terms, scaled.
LossHook = Callable[[nn.Module, DistillStep], LossTerms]
# Called with (detection losses, terms by name, step); returns the terms to train with.
TermsHook = Callable[[dict[str, Tensor], dict[str, LossTerms], DistillStep], dict[str, LossTerms]]
# Called with (batch, step) after the losses.
StepHook = Callable[[list[dict], DistillStep], None]

Value = TypeVar("Value")


def split_losses(losses: dict[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Split what ``Distiller.forward`` returns, or its logged values.

    Returns:
        the detection losses by their key; the distillation losses by name, without LOSS_PREFIX.
    """
    detection = {key: x for key, x in losses.items() if not key.startswith(LOSS_PREFIX)}
    distillation = {
        key[len(LOSS_PREFIX) :]: x for key, x in losses.items() if key.startswith(LOSS_PREFIX)
    }
    return detection, distillation
