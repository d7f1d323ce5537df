# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Observers: one function per detector family that runs a student and its teacher side by side."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from ...structures import DistillStep
from ..teacher import FrozenTeacher

__all__ = ["RequiredOutputs", "PairForward", "get_paired_forward", "register_paired_forward"]


class RequiredOutputs(NamedTuple):
    """What the enabled losses need of a step.

    Attributes:
        requires: what the teacher must answer; any of "features", "dense_logits", "logits",
            "deltas", "box_bins". Nothing else of the teacher runs.
        proposals: whose proposals a two-stage student is trained on: "student" or "union".
    """

    requires: frozenset[str]
    proposals: str


PairForward = Callable[
    [nn.Module, FrozenTeacher, list[dict], RequiredOutputs], tuple[dict[str, Tensor], DistillStep]
]

_OBSERVERS: dict[str, PairForward] = {}


def register_paired_forward(*meta_architectures: str) -> Callable[[PairForward], PairForward]:
    """Register ``forward_pair(student, teacher, batch, required)``.

    It returns the detection losses and a ``DistillStep``.
    The losses must be bit-equal to those of the student's own training forward, and every head of
    the student runs once. This is all that a new detector needs in order to be distilled.

    Args:
        meta_architectures: the MODEL.META_ARCHITECTURE names that the function serves.
    """

    def register(forward_pair: PairForward) -> PairForward:
        _OBSERVERS.update(dict.fromkeys(meta_architectures, forward_pair))
        return forward_pair

    return register


def get_paired_forward(meta_architecture: str) -> PairForward:
    """The observer of a meta-architecture; ValueError where there is none."""
    if meta_architecture not in _OBSERVERS:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {meta_architecture!r} cannot be distilled; set it to one of "
            f"{sorted(_OBSERVERS)}, or register a paired forward for it "
            "(d2kd.modeling.paired_forward.registry)"
        )
    return _OBSERVERS[meta_architecture]
