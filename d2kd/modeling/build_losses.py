# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""From the DISTILL.* keys to loss modules: the only place where a loss meets a config."""

from collections.abc import Callable, Iterable

from detectron2.config import CfgNode
from torch import nn

from ..losses.classification import ClassificationLoss
from ..losses.regression import RegressionLoss
from .compatibility import check_dense_levels, check_pair
from .compose import feature_loss
from .head_checks import check_heads

__all__ = ["build_distill_losses", "union_of_requires"]


def _parameters(node: CfgNode, name: str) -> dict[str, object]:
    """The parameters of a registered mask or distance: its node, with lower-case names."""
    return {key.lower(): value for key, value in node.get(name.upper(), {}).items()}


def _build_feature(cfg: CfgNode, student: nn.Module, teacher: nn.Module) -> nn.Module:
    node = cfg.DISTILL.FEATURE
    loss = feature_loss(
        levels=node.LEVELS,
        weight=node.WEIGHT,
        mask=node.MASK,
        mask_args=_parameters(cfg.DISTILL.MASKS, node.MASK),
        distance=node.DISTANCE,
        distance_args=_parameters(cfg.DISTILL.DISTANCES, node.DISTANCE),
        channels=node.CHANNELS,
        adapter=node.ADAPTER,
        reduce=cfg.DISTILL.REDUCE_NORMALIZERS,
    )(student, teacher)
    if "dense_logits" in loss.requires:
        check_dense_levels(cfg, list(loss.adapters))
    return loss


def _build_classification(cfg: CfgNode, student: nn.Module, teacher: nn.Module) -> nn.Module:
    node = cfg.DISTILL.CLS
    return ClassificationLoss(
        weight=node.WEIGHT,
        where=node.WHERE,
        mask_args=_parameters(cfg.DISTILL.MASKS, node.WHERE),
        distance=node.DISTANCE,
        temperature=node.TEMPERATURE,
        normalizer=node.NORMALIZER,
        reduce=cfg.DISTILL.REDUCE_NORMALIZERS,
    )


def _build_regression(cfg: CfgNode, student: nn.Module, teacher: nn.Module) -> nn.Module:
    node = cfg.DISTILL.REG
    return RegressionLoss(
        weight=node.WEIGHT,
        gate=node.GATE,
        distance=node.DISTANCE,
        temperature=node.TEMPERATURE,
        where=node.WHERE,
        normalizer=node.NORMALIZER,
        reduce=cfg.DISTILL.REDUCE_NORMALIZERS,
    )


_BUILDERS: dict[str, Callable[[CfgNode, nn.Module, nn.Module], nn.Module]] = {
    "feature": _build_feature,
    "cls": _build_classification,
    "reg": _build_regression,
}


def build_distill_losses(
    cfg: CfgNode, teacher_cfg: CfgNode, student: nn.Module, teacher: nn.Module
) -> nn.ModuleDict:
    """The enabled losses by name, adapters inside, on MODEL.DEVICE.

    Args:
        cfg, teacher_cfg: the student's, with DISTILL.*, and the teacher's full configs.
        student, teacher: the detectors, for the shapes of their feature levels.

    Raises:
        ConfigError, PairMismatchError: a loss does not fit the detectors, or they do not fit each
            other in what the losses compare.
    """
    names = cfg.DISTILL.LOSSES
    losses = nn.ModuleDict({name: _BUILDERS[name](cfg, student, teacher) for name in names})
    requires = union_of_requires(losses.values())
    check_pair(cfg, teacher_cfg, requires)
    check_heads(student, teacher, requires, union=cfg.DISTILL.PROPOSALS == "union")
    return losses.to(cfg.MODEL.DEVICE)


def union_of_requires(losses: Iterable[nn.Module]) -> frozenset[str]:
    """What any of these losses reads of the teacher."""
    return frozenset().union(*(loss.requires for loss in losses))
