# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Adapters: the layers that bring a student's feature level to the teacher's channels.

Shape shorthand in this file:
    N: images; C: student channels; D: teacher channels; H, W: size of a feature level
"""

from collections.abc import Iterable

from detectron2.layers import ShapeSpec
from torch import nn

from ..utils.errors import PairMismatchError

__all__ = ["ADAPTERS", "build_adapters"]

ADAPTERS = ("auto", "none", "1x1", "3x3")
_KERNELS = {"auto": 1, "1x1": 1, "3x3": 3}


def _build_adapter(kind: str, level: str, student: ShapeSpec, teacher: ShapeSpec) -> nn.Module:
    same = student.channels == teacher.channels
    if kind == "none" and not same:
        raise PairMismatchError(
            f"level {level} has {student.channels} channels in the student and {teacher.channels} "
            "in the teacher: set DISTILL.FEATURE.ADAPTER to '1x1', '3x3' or 'auto'"
        )
    if kind == "none" or (kind == "auto" and same):
        return nn.Identity()
    kernel = _KERNELS[kind]
    # PyTorch's own initial values, as in FRS's released code. Detectron2's c2_xavier_fill
    # would give weights of 1.7 times the deviation, and biases of 0.
    return nn.Conv2d(student.channels, teacher.channels, kernel, padding=kernel // 2)


def build_adapters(
    kind: str,
    levels: Iterable[str],
    student_shapes: dict[str, ShapeSpec],
    teacher_shapes: dict[str, ShapeSpec],
) -> nn.ModuleDict:
    """One adapter phi per level, (N, C, H, W) -> (N, D, H, W), on the student's side only.

    A single convolution with bias and without norm or activation, as FRS has it (arXiv 2111.00674,
    released code: 3x3 on every level, also where channels agree). It starts as PyTorch starts
    every convolution.

    Args:
        kind: "none" (channels must agree), "1x1", "3x3", or "auto": none where the channels agree,
            1x1 elsewhere.
        levels: names of the levels to distil, e.g. "p3".
        student_shapes, teacher_shapes: ``backbone.output_shape()`` of each network.

    Returns:
        nn.ModuleDict: level -> adapter.

    Raises:
        KeyError: for an unknown kind.
        PairMismatchError: "none" between different numbers of channels.
    """
    return nn.ModuleDict(
        {
            level: _build_adapter(kind, level, student_shapes[level], teacher_shapes[level])
            for level in levels
        }
    )
