# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What must agree between a student and its teacher, checked before the first step."""

from collections.abc import Iterable

from detectron2.config import CfgNode
from torch import nn

from ..config import get_value
from ..config.spelling import same_value
from ..data import num_classes_key

__all__ = ["check_dense_levels", "check_levels", "check_pair", "check_two_stage"]

# The part of a config that gives the same regions the same meaning in both detectors. A detector
# of one's own has no entry: its observer is trusted.
_ANCHOR_KEYS = (
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "MODEL.ANCHOR_GENERATOR.OFFSET",
)
_BOX_KEYS = {
    "GeneralizedRCNN": ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",),
    "RetinaNet": ("MODEL.RETINANET.BBOX_REG_WEIGHTS", *_ANCHOR_KEYS),
    "FCOS": (),
    "GFL": ("MODEL.GFL.REG_MAX", "MODEL.ANCHOR_GENERATOR.OFFSET"),
}
_DENSE_LEVEL_KEYS = {
    "GeneralizedRCNN": "MODEL.RPN.IN_FEATURES",
    "RetinaNet": "MODEL.RETINANET.IN_FEATURES",
    "FCOS": "MODEL.FCOS.IN_FEATURES",
    "GFL": "MODEL.GFL.IN_FEATURES",
}


def _check_keys(cfg: CfgNode, teacher_cfg: CfgNode, keys: Iterable[str], why: str) -> None:
    for key in keys:
        ours, theirs = get_value(cfg, key), get_value(teacher_cfg, key)
        if not same_value(key, ours, theirs):
            raise ValueError(
                f"{key} is {ours} for the student and {theirs} for the teacher, but {why}: set "
                f"{key} to {theirs}, or choose another DISTILL.TEACHER.CONFIG_FILE"
            )


def check_pair(cfg: CfgNode, teacher_cfg: CfgNode, requires: frozenset[str]) -> None:
    """Compare the two configs in everything that the enabled losses rely on.

    Args:
        cfg, teacher_cfg: the student's and the teacher's full configs.
        requires: what the losses read from the teacher (``RequiredOutputs.requires``).

    Raises:
        ValueError: names the key, both values, and what to set it to.
    """
    family, heads = cfg.MODEL.META_ARCHITECTURE, requires - {"features"}
    two_stage, union = family == "GeneralizedRCNN", cfg.DISTILL.PROPOSALS == "union"
    if union and not two_stage:
        raise ValueError(f"{family} has no proposals: set DISTILL.PROPOSALS to 'student'")
    if "box_bins" in heads and family in _BOX_KEYS and family != "GFL":
        raise ValueError(f"{family} has no box-edge bins: set DISTILL.REG.DISTANCE to 'box_loss'")
    if not heads and not union:
        return
    why = "the enabled losses compare their heads"
    _check_keys(cfg, teacher_cfg, ["MODEL.META_ARCHITECTURE"], why)
    if two_stage:
        check_two_stage(teacher_cfg, "the teacher's")
    if heads & {"logits", "deltas"} or (heads and not two_stage):
        _check_keys(cfg, teacher_cfg, filter(None, [num_classes_key(cfg)]), why)
    if family in _DENSE_LEVEL_KEYS and ("dense_logits" in heads or not two_stage):
        keys = [_DENSE_LEVEL_KEYS[family]]
        anchors = _ANCHOR_KEYS if family in ("GeneralizedRCNN", "RetinaNet") else ()
        _check_keys(cfg, teacher_cfg, [*keys, *anchors], why)
    if heads & {"logits", "deltas", "box_bins"}:
        _check_keys(cfg, teacher_cfg, _BOX_KEYS.get(family, ()), "they must mean the same box")


def check_two_stage(cfg: CfgNode, whose: str) -> None:
    """The parts of a GeneralizedRCNN whose heads are read must be the standard ones.

    Args:
        cfg: with MODEL.*.
        whose: "the student's" or "the teacher's", for the message.

    Raises:
        ValueError: names the key and the value it must have.
    """
    standard = {
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
        # Not in Detectron2 0.6. Its logits are not a softmax's.
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    }
    for key, value in standard.items():
        found = get_value(cfg, key)
        if found is not None and found != value:
            raise ValueError(f"{whose} {key} is {found!r}: set it to {value!r}")


def check_dense_levels(cfg: CfgNode, levels: Iterable[str]) -> None:
    """A mask that reads dense logits needs them on every distilled level.

    Args:
        cfg: the student's.
        levels: that are distilled.

    Raises:
        ValueError: names the levels without, and the key.
    """
    key = _DENSE_LEVEL_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    lacking = sorted(set(levels) - set(get_value(cfg, key))) if key else []
    if lacking:
        raise ValueError(
            f"the mask {cfg.DISTILL.FEATURE.MASK!r} reads the dense head, which does not look at "
            f"{lacking}: set DISTILL.FEATURE.LEVELS to some of {key}, {get_value(cfg, key)}"
        )


def check_levels(levels: Iterable[str], student: nn.Module, teacher: nn.Module) -> None:
    """Every distilled level must be there on both sides, at the same stride.

    Args:
        levels: names from DISTILL.FEATURE.LEVELS.
        student, teacher: detectors with a ``backbone`` of ``output_shape()``.

    Raises:
        ValueError: names the level and the key.
    """
    shapes = {
        "student": student.backbone.output_shape(),
        "teacher": teacher.backbone.output_shape(),
    }
    for level in levels:
        for who, shape in shapes.items():
            if level not in shape:
                raise ValueError(
                    f"the {who} has no feature level {level!r}: set DISTILL.FEATURE.LEVELS to some "
                    f"of {sorted(shape)}"
                )
        strides = {who: shape[level].stride for who, shape in shapes.items()}
        if len(set(strides.values())) > 1:
            raise ValueError(f"level {level!r} in DISTILL.FEATURE.LEVELS has the strides {strides}")
    pads = {
        "student": student.backbone.size_divisibility,
        "teacher": teacher.backbone.size_divisibility,
    }
    if len(set(pads.values())) > 1:
        raise ValueError(
            f"the backbones pad images to multiples of {pads}, so their features do not align: "
            "choose another DISTILL.TEACHER.CONFIG_FILE"
        )
