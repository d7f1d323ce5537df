# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""In which precision a frozen detector computes, and that others see float32."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["call_in"]


def call_in(precision: str, device: str, function: Callable, *inputs: Any) -> Any:
    """``function(*inputs)`` under autocast, without gradients.

    Weights stay float32: casting them at each call takes no measurable time beside what is
    computed with them, normalisation layers keep their precision on every device, and what is
    inherited from the teacher is exact. Converting them was as fast and as far from float32.

    Args:
        precision: "student": as the code around does it (half under SOLVER.AMP), results as they
            are; "float32"; "bfloat16" or "float16", results in float32.
        device: type of the device, "cpu" or "cuda".
        function: a part of a detector.
        inputs: its arguments.
    """
    with torch.no_grad():
        if precision == "student":
            return function(*inputs)
        half = precision != "float32"
        with torch.autocast(device, getattr(torch, precision) if half else None, enabled=half):
            return _full(function(*inputs))


def _full(outputs: Any) -> Any:
    """Every tensor in it in float32."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: _full(value) for name, value in outputs.items()}
    return [_full(value) for value in outputs]
