# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A Distiller of parts that are built already, as LazyConfig and own trainers have them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from fvcore.common.param_scheduler import ConstantParamScheduler, ParamScheduler
from torch import nn

from ..config.user_modules import default_config
from ..losses import DISTANCE_REGISTRY, MASK_REGISTRY
from ..losses.adapters import build_adapters
from ..losses.classification import ClassificationLoss
from ..losses.feature import FeatureLoss
from ..losses.regression import RegressionLoss
from ..utils.errors import ConfigError, PairMismatchError
from ..utils.text import did_you_mean
from .compatibility import check_backbone, check_dense_levels, check_levels, check_pair
from .detector_facts import write_facts
from .head_checks import check_heads
from .teacher import FrozenTeacher

__all__ = [
    "DistillLoss",
    "check_composed",
    "compose_losses",
    "compose_teacher",
    "feature_loss",
    "student_facts",
]

# Makes a loss of a student and a teacher, for example with adapters between their channels.
LossFactory = Callable[[nn.Module, nn.Module], nn.Module]


class DistillLoss(NamedTuple):
    """One distillation loss of ``Distiller.compose``.

    Attributes:
        loss: a module with ``requires`` and ``forward(step) -> LossTerms``, or what makes one of
            student and teacher, as ``feature_loss`` does.
        weight: a factor on it, beside its own weight.
        schedule: progress of the training in [0, 1) -> another factor; None is 1.
    """

    loss: nn.Module | LossFactory
    weight: float = 1.0
    schedule: ParamScheduler | None = None

    def factor(self, progress: float) -> float:
        """Weight and schedule at this progress."""
        return self.weight * (1.0 if self.schedule is None else self.schedule(progress))


class _Factor(ParamScheduler):
    """Weight and schedule of a loss as one schedule."""

    def __init__(self, loss: DistillLoss):
        self._loss = loss

    def __call__(self, where: float) -> float:
        return self._loss.factor(where)


def feature_loss(
    *,
    weight: float = 1.0,
    mask: str = "gaussian",
    mask_args: Mapping[str, Any] | None = None,
    distance: str = "squared",
    distance_args: Mapping[str, Any] | None = None,
    channels: str = "mean",
    adapter: str = "auto",
    levels: Sequence[str] = (),
    reduce: bool = False,
) -> LossFactory:
    """A FeatureLoss that waits for the detectors, whose channels its adapters need.

    Args:
        weight, mask, mask_args, distance, distance_args, channels, reduce: of ``FeatureLoss``.
        adapter: kind of ``build_adapters``.
        levels: that are compared; () is every level of the student's backbone.

    Returns:
        called with the student and the teacher's detector.
    """
    arguments = {"weight": weight, "mask": mask, "distance": distance, "channels": channels}
    arguments |= {"mask_args": dict(mask_args or {}), "distance_args": dict(distance_args or {})}
    return partial(_make_feature_loss, adapter, list(levels), {**arguments, "reduce": reduce})


def _make_feature_loss(
    adapter: str,
    levels: list[str],
    arguments: dict[str, Any],
    student: nn.Module,
    teacher: nn.Module,
) -> FeatureLoss:
    ours, theirs = student.backbone.output_shape(), teacher.backbone.output_shape()
    for kind, registry in (("mask", MASK_REGISTRY), ("distance", DISTANCE_REGISTRY)):
        if arguments[kind] not in registry:
            known = [name for name, _ in registry]
            hint = did_you_mean(arguments[kind], known)
            raise ConfigError(
                f"feature_loss: {kind} is {arguments[kind]!r}: set it to one of {known}.{hint}"
            )
    levels = levels or list(ours)
    check_levels(levels, student, teacher)
    return FeatureLoss(adapters=build_adapters(adapter, levels, ours, theirs), **arguments)


def compose_teacher(student: nn.Module, teacher: nn.Module) -> FrozenTeacher:
    """The teacher, frozen; its channels are swapped if both tell their ``input_format``.

    Raises:
        PairMismatchError: either has no backbone, or its images cannot be made of the student's.
    """
    check_backbone(student, "the student's")
    if isinstance(teacher, FrozenTeacher):
        return teacher
    check_backbone(teacher, "the teacher's")
    ours, theirs = (getattr(x, "input_format", None) for x in (student, teacher))
    formats = {ours, theirs} - {None}
    if len(formats) > 1 and formats != {"RGB", "BGR"}:
        raise PairMismatchError(
            f"the teacher reads {theirs} images and the student {ours}: one cannot be made of the "
            "other, so choose another teacher"
        )
    return FrozenTeacher(teacher, swap_channels=len(formats) > 1)


def compose_losses(
    losses: Mapping[str, DistillLoss | nn.Module | LossFactory | Sequence[Any]],
    student: nn.Module,
    teacher: nn.Module,
) -> tuple[nn.ModuleDict, dict[str, ParamScheduler]]:
    """The loss modules by name, on the student's device, and their factors.

    Args:
        losses: of ``Distiller.compose``.
        student, teacher: the detectors.

    Raises:
        ConfigError: what is given is no loss.
    """
    given = {name: _as_loss(name, value) for name, value in losses.items()}
    if not given:
        raise ConfigError("losses is empty: give at least one, e.g. {'feature': feature_loss()}")
    modules = nn.ModuleDict()
    # A student's random streams do not depend on its having a teacher.
    with torch.random.fork_rng(devices=[]):
        for name, loss in given.items():
            found = loss.loss if isinstance(loss.loss, nn.Module) else loss.loss(student, teacher)
            if not hasattr(found, "requires"):
                raise ConfigError(
                    f"the loss {name!r} is a {type(found).__name__} without 'requires': set it to "
                    "the names of the teacher's outputs that it reads, frozenset({'features'})"
                )
            modules[name] = found
    return modules.to(student.device), {name: _Factor(loss) for name, loss in given.items()}


def _as_loss(name: str, value: Any) -> DistillLoss:
    if isinstance(value, DistillLoss):
        loss = value
    elif isinstance(value, nn.Module) or callable(value):
        loss = DistillLoss(value)
    else:
        try:
            loss = DistillLoss(*value)
        except TypeError as error:
            raise ConfigError(
                f"the loss {name!r} is {value!r}: give a loss module, feature_loss(...), or "
                "(module, weight, schedule)"
            ) from error
    if isinstance(loss.schedule, (int, float)):
        loss = loss._replace(schedule=ConstantParamScheduler(loss.schedule))
    if not callable(loss.loss):
        raise ConfigError(f"the loss {name!r} is {loss.loss!r}, which is no loss module")
    return loss


def student_facts(
    student: nn.Module,
    losses: nn.ModuleDict,
    *,
    proposals: str = "student",
    cross_head: int = 0,
    datasets: Sequence[str] = (),
) -> CfgNode:
    """The keys that the checks read, of a student and losses that were built without a cfg."""
    cfg = default_config()
    write_facts(cfg, student)
    cfg.MODEL.DEVICE = str(student.device)
    cfg.DATASETS.TRAIN = tuple(datasets)
    node = cfg.DISTILL
    node.ENABLED, node.PROPOSALS, node.CROSS_HEAD = True, proposals, cross_head
    kinds = {"feature": FeatureLoss, "cls": ClassificationLoss, "reg": RegressionLoss}
    node.LOSSES = [
        name for name, kind in kinds.items() if any(isinstance(x, kind) for x in losses.values())
    ]
    for loss in losses.values():
        if isinstance(loss, FeatureLoss):
            node.FEATURE.MASK, node.FEATURE.LEVELS = loss.mask_name, list(loss.adapters)
        if isinstance(loss, ClassificationLoss):
            node.CLS.DISTANCE = loss.distance
    return cfg


def check_composed(
    cfg: CfgNode, student: nn.Module, teacher: FrozenTeacher, losses: nn.ModuleDict
) -> CfgNode:
    """The checks that a pair of configs gets, on two detectors.

    Args:
        cfg: from ``student_facts``.

    Returns:
        the teacher's keys.

    Raises:
        ConfigError, PairMismatchError: as ``check_pair``, ``check_heads`` and ``check_levels``.
    """
    teacher_cfg = default_config()
    write_facts(teacher_cfg, teacher.model)
    requires: frozenset[str] = frozenset().union(*(loss.requires for loss in losses.values()))
    for loss in losses.values():
        if isinstance(loss, FeatureLoss):
            check_levels(list(loss.adapters), student, teacher.model)
            if "dense_logits" in loss.requires:
                check_dense_levels(cfg, list(loss.adapters))
    check_pair(cfg, teacher_cfg, requires)
    check_heads(student, teacher.model, requires, union=cfg.DISTILL.PROPOSALS == "union")
    return teacher_cfg
