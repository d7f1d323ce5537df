# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What masks, distances and losses share: precision, parameters, matching sizes."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..structures import LossTerms
from ..utils.errors import ConfigError, PairMismatchError

__all__ = ["bind", "check_same_size", "full_precision", "no_autocast", "weighted_terms"]


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged if it is more precise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which nothing on the tensor's device is cast to a lower precision."""
    return torch.autocast(tensor.device.type, enabled=False)


def bind(function: Callable, parameters: dict[str, Any]) -> Callable:
    """``function`` with its keyword parameters set.

    Raises:
        ConfigError: if the function has no such parameter (checked now, not at the first step).
    """
    accepted = inspect.signature(function).parameters.values()
    known = [p.name for p in accepted if p.kind is inspect.Parameter.KEYWORD_ONLY]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ConfigError(f"{function.__name__} has no parameters {unknown}; it has {known}")
    return functools.partial(function, **parameters)


def check_same_size(student: Tensor, teacher: Tensor, level: str, dims: slice) -> None:
    """Raises a PairMismatchError that names the level if these dimensions of the maps differ."""
    if student.shape[dims] != teacher.shape[dims]:
        raise PairMismatchError(
            f"on level {level!r} the student's map is {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}: their strides, padding or numbers of outputs differ"
        )


def weighted_terms(losses: dict[str, Tensor], factor: float) -> LossTerms:
    """The sum over levels times a factor.

    Args:
        losses: level name -> scalar.
    """
    per_level = {level: factor * loss.detach() for level, loss in losses.items()}
    return LossTerms(factor * sum(losses.values()), per_level)
