"""Observers: one function per detector family that runs a student and its teacher side by side."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from ...structures import DistillStep
from ..teacher import FrozenTeacher

__all__ = ["Wanted", "Observer", "get_observer", "register_observer"]


class Wanted(NamedTuple):
    """What the enabled losses need of a step.

    Attributes:
        requires: what the teacher must answer; any of "features", "dense_logits", "logits",
            "deltas", "box_bins". Nothing else of the teacher runs.
        proposals: whose proposals a two-stage student is trained on: "student" or "union".
    """

    requires: frozenset[str]
    proposals: str


Observer = Callable[
    [nn.Module, FrozenTeacher, list[dict], Wanted], tuple[dict[str, Tensor], DistillStep]
]

_OBSERVERS: dict[str, Observer] = {}


def register_observer(*meta_architectures: str) -> Callable[[Observer], Observer]:
    """Register ``observe(student, teacher, batch, want) -> (detection losses, DistillStep)``.

    The losses must be bit-equal to those of the student's own training forward, and every head of
    the student runs once. This is all that a new detector needs in order to be distilled.

    Args:
        meta_architectures: the MODEL.META_ARCHITECTURE names that the function serves.
    """

    def register(observe: Observer) -> Observer:
        _OBSERVERS.update({name: observe for name in meta_architectures})
        return observe

    return register


def get_observer(meta_architecture: str) -> Observer:
    """The observer of a meta-architecture; ValueError where there is none."""
    if meta_architecture not in _OBSERVERS:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {meta_architecture!r} cannot be distilled; set it to one of "
            f"{sorted(_OBSERVERS)}, or register an observer for it (d2kd.modeling.paired_forward.registry)"
        )
    return _OBSERVERS[meta_architecture]
