# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Paired forwards: one function per detector family runs a student and its teacher on a batch."""

from collections.abc import Callable
from typing import NamedTuple

from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ...config.detectors import get_detector
from ...structures import DistillStep
from ...utils.errors import ConfigError
from ..teacher import FrozenTeacher

__all__ = ["PAIR_FORWARD_REGISTRY", "PairForward", "RequiredOutputs", "get_paired_forward"]


class RequiredOutputs(NamedTuple):
    """What the enabled losses need of a step.

    Attributes:
        requires: which of the teacher's outputs; any of "features", "dense_logits", "logits",
            "deltas", "box_bins", "dense_deltas", "dense_box_bins". Nothing else of it runs.
        proposals: whose proposals a two-stage student is trained on: "student" or "union".
        cross_head: DISTILL.CROSS_HEAD, for dense detectors.
    """

    requires: frozenset[str]
    proposals: str
    cross_head: int = 0


PairForward = Callable[
    [nn.Module, FrozenTeacher, list[dict], RequiredOutputs], tuple[dict[str, Tensor], DistillStep]
]

PAIR_FORWARD_REGISTRY = Registry("PAIR_FORWARD")
PAIR_FORWARD_REGISTRY.__doc__ = """
Functions ``(student, teacher, batch, required) -> (the student's own losses, DistillStep)``.

The losses must be bit-equal to those of the student's own training forward, and every head of the
student must run once. A row of the detector table (``d2kd.config.detectors``) names the function
that runs its detector.
"""


def get_paired_forward(cfg: CfgNode) -> PairForward:
    """The function that runs the student of ``cfg.MODEL`` and its teacher.

    Raises:
        ConfigError: the detector is not registered, or its row in the detector table names a
            function that is not.
    """
    row = get_detector(cfg)
    if row.forward_pair not in PAIR_FORWARD_REGISTRY:
        known = [name for name, _ in PAIR_FORWARD_REGISTRY]
        raise ConfigError(
            f"the row of {row.name!r} in the detector table names the paired forward "
            f"{row.forward_pair!r}: register it with @PAIR_FORWARD_REGISTRY.register(), or set "
            f"forward_pair to one of {known}"
        )
    return PAIR_FORWARD_REGISTRY.get(row.forward_pair)
