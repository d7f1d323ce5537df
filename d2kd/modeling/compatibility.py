# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What must agree between a student and its teacher, checked before the first step."""

from collections.abc import Iterable

from detectron2.config import CfgNode
from torch import nn

from ..config import get_value
from ..config.detectors import Detector, get_detector, plain_facts
from ..config.spelling import same_value
from ..losses.masks import MASK_REGISTRY
from ..utils.errors import ConfigError, PairMismatchError
from .square_padding import square_size

__all__ = ["WITHOUT", "check_backbone", "check_dense_levels", "check_levels", "check_pair"]

# What to set where a detector does not give an output that the losses require.
WITHOUT = {
    "dense_logits": "DISTILL.FEATURE.MASK and DISTILL.CLS.WHERE to masks that do not read them",
    "logits": "DISTILL.LOSSES to a list without 'cls'",
    "deltas": "DISTILL.LOSSES to a list without 'reg'",
    "box_bins": "DISTILL.REG.DISTANCE to 'box_loss'",
    "dense_deltas": "DISTILL.REG.WHERE to 'positives'",
    "dense_box_bins": "DISTILL.REG.DISTANCE to 'giou'",
}
_BOXES = frozenset({"deltas", "box_bins", "dense_deltas", "dense_box_bins"})


def _check_keys(cfg: CfgNode, teacher_cfg: CfgNode, keys: Iterable[str], why: str) -> None:
    for key in keys:
        ours, theirs = get_value(cfg, key), get_value(teacher_cfg, key)
        if not same_value(key, ours, theirs):
            raise PairMismatchError(
                f"{key} is {ours} for the student and {theirs} for the teacher, but {why}: set "
                f"{key} to {theirs}, or choose another DISTILL.TEACHER.CONFIG_FILE"
            )


def check_pair(cfg: CfgNode, teacher_cfg: CfgNode, requires: frozenset[str]) -> None:
    """Compare the two configs in everything that the enabled losses rely on.

    Args:
        cfg, teacher_cfg: the student's and the teacher's full configs.
        requires: what the losses read from the teacher (``RequiredOutputs.requires``).

    Raises:
        ConfigError: the detector does not give what the losses require.
        PairMismatchError: names the key, both values, and what to set it to.
    """
    row, heads = get_detector(cfg), requires - {"features"}
    name, union = cfg.MODEL.META_ARCHITECTURE, cfg.DISTILL.PROPOSALS == "union"
    if union and not row.two_stage:
        raise ConfigError(f"{name} has no proposals: set DISTILL.PROPOSALS to 'student'")
    if (
        row.two_stage
        and "cls" in cfg.DISTILL.LOSSES
        and cfg.DISTILL.CLS.DISTANCE == "quality_focal"
    ):
        raise ConfigError(
            f"{name} scores classes by a softmax: set DISTILL.CLS.DISTANCE to 'cross_entropy'"
        )
    _check_outputs(name, heads - row.outputs, ConfigError)
    _check_boxes(cfg)
    _check_cross_head(cfg, teacher_cfg, row)
    if heads or union:
        _check_family(cfg, teacher_cfg, row, heads)
        why = "the enabled losses compare their heads"
        _check_keys(cfg, teacher_cfg, _keys_that_must_agree(row, heads), why)
    if heads & ({"logits"} | _BOXES):
        _check_keys(cfg, teacher_cfg, row.box_keys, "they must mean the same box")


def _check_outputs(whose: str, lacking: Iterable[str], kind: type[Exception]) -> None:
    problems = [f"{whose} has no {name}: set {WITHOUT[name]}" for name in sorted(lacking)]
    if problems:
        raise kind("; ".join(problems))


def _check_boxes(cfg: CfgNode) -> None:
    """A mask of boxes is 0 everywhere where a detector is trained without boxes."""
    name, mask = cfg.MODEL.META_ARCHITECTURE, cfg.DISTILL.FEATURE.MASK
    without_boxes = plain_facts(cfg).predicts == {"sem_seg"}
    if without_boxes and "feature" in cfg.DISTILL.LOSSES and MASK_REGISTRY.get(mask).of_boxes:
        raise ConfigError(
            f"{name} is trained without boxes, which the mask {mask!r} reads: set "
            "DISTILL.FEATURE.MASK to 'uniform'"
        )


def _check_family(cfg: CfgNode, teacher_cfg: CfgNode, row: Detector, heads: frozenset[str]) -> None:
    """Both have heads of one kind: proposals and their box heads, or one dense head."""
    theirs, key = get_detector(teacher_cfg), "MODEL.META_ARCHITECTURE"
    if theirs.name != row.name and not (theirs.two_stage and row.two_stage):
        ours, other = get_value(cfg, key), get_value(teacher_cfg, key)
        raise PairMismatchError(
            f"{key} is {ours} for the student and {other} for the teacher, but the enabled losses "
            f"compare their heads: set DISTILL.LOSSES to ['feature'], with a DISTILL.FEATURE.MASK "
            "that reads no head, or choose another DISTILL.TEACHER.CONFIG_FILE"
        )
    whose = f"the teacher's {teacher_cfg.MODEL.META_ARCHITECTURE}"
    _check_outputs(whose, heads - theirs.outputs, PairMismatchError)


def _check_cross_head(cfg: CfgNode, teacher_cfg: CfgNode, row: Detector) -> None:
    """DISTILL.CROSS_HEAD needs a loss on heads, and heads of one width and depth."""
    count = cfg.DISTILL.CROSS_HEAD
    if not count:
        return
    refusal = f"DISTILL.CROSS_HEAD is {count}, but"
    if not row.cross_head_keys:
        raise ConfigError(f"{refusal} {row.name} has no dense class head: set it to 0")
    if not {"cls", "reg"} & set(cfg.DISTILL.LOSSES):
        raise ConfigError(f"{refusal} no loss compares heads: set it to 0")
    depth = get_value(cfg, row.cross_head_keys[0])
    if count > depth:
        raise ConfigError(
            f"{refusal} {row.cross_head_keys[0]} is {depth}: set it to {depth} or less"
        )
    why = "DISTILL.CROSS_HEAD needs heads of one width and depth"
    _check_keys(cfg, teacher_cfg, ["MODEL.META_ARCHITECTURE", *row.cross_head_keys], why)


def _keys_that_must_agree(row: Detector, heads: frozenset[str]) -> list[str]:
    """The keys that give the compared outputs the same classes, levels and anchors."""
    keys = []
    if heads & {"logits", "deltas"} or (heads and not row.two_stage):
        keys.append(row.num_classes_key)
    if "dense_logits" in heads or not row.two_stage:
        keys += [row.dense_levels_key, *row.anchor_keys]
    return [key for key in keys if key]


def check_backbone(model: nn.Module, whose: str) -> None:
    """Every loss compares what a part called ``backbone`` gives, or heads that read it.

    Raises:
        PairMismatchError: the detector has none.
    """
    if not hasattr(getattr(model, "backbone", None), "output_shape"):
        raise PairMismatchError(
            f"{whose} {type(model).__name__} has no Backbone as its attribute 'backbone', whose "
            "features are compared: this detector cannot be distilled"
        )


def check_dense_levels(cfg: CfgNode, levels: Iterable[str]) -> None:
    """A mask that reads dense logits needs them on every distilled level.

    Args:
        cfg: the student's.
        levels: that are distilled.

    Raises:
        ConfigError: names the levels without, and the key.
    """
    key = get_detector(cfg).dense_levels_key
    lacking = sorted(set(levels) - set(get_value(cfg, key))) if key else []
    if lacking:
        raise ConfigError(
            f"the mask {cfg.DISTILL.FEATURE.MASK!r} reads the dense head, which does not look at "
            f"{lacking}: set DISTILL.FEATURE.LEVELS to some of {key}, {get_value(cfg, key)}"
        )


def check_levels(levels: Iterable[str], student: nn.Module, teacher: nn.Module) -> None:
    """Every distilled level must be there on both sides, at the same stride.

    Args:
        levels: names from DISTILL.FEATURE.LEVELS.
        student, teacher: detectors with a ``backbone`` of ``output_shape()``.

    Raises:
        PairMismatchError: names the level and the key.
    """
    shapes = {
        "student": student.backbone.output_shape(),
        "teacher": teacher.backbone.output_shape(),
    }
    ours, theirs = shapes.values()
    common = sorted(x for x in ours if x in theirs and ours[x].stride == theirs[x].stride)
    advice = f"DISTILL.FEATURE.LEVELS to some of {common}"
    if not common:
        advice = "DISTILL.LOSSES to a list without 'feature', for they share no level of one stride"
    for level in levels:
        for who, shape in shapes.items():
            if level not in shape:
                raise PairMismatchError(f"the {who} has no feature level {level!r}: set {advice}")
        strides = {who: shape[level].stride for who, shape in shapes.items()}
        if len(set(strides.values())) > 1:
            raise PairMismatchError(
                f"level {level!r} in DISTILL.FEATURE.LEVELS has the strides {strides}: set {advice}"
            )
    pads = {
        "student": student.backbone.size_divisibility,
        "teacher": teacher.backbone.size_divisibility,
    }
    # Maps of a teacher that pads to a square are cropped to the student's.
    if len(set(pads.values())) > 1 and not square_size(teacher.backbone):
        raise PairMismatchError(
            f"the backbones pad images to multiples of {pads}, so their features do not align: "
            "choose another DISTILL.TEACHER.CONFIG_FILE"
        )
