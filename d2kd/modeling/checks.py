"""What must agree between a student and its teacher, checked before the first step."""

from typing import Any, FrozenSet, Iterable

from detectron2.config import CfgNode
from torch import nn

__all__ = ["check_levels", "check_pair"]

# The part of a config that gives the same regions the same meaning in both detectors.
_CLASS_KEYS = {
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "FCOS": "MODEL.FCOS.NUM_CLASSES",
    "GFL": "MODEL.GFL.NUM_CLASSES",
}
_ANCHOR_KEYS = ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
_BOX_KEYS = {
    "GeneralizedRCNN": ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",),
    "RetinaNet": ("MODEL.RETINANET.BBOX_REG_WEIGHTS", *_ANCHOR_KEYS),
    "FCOS": (),
    "GFL": ("MODEL.GFL.REG_MAX",),
}
_DENSE_KEYS = {
    "GeneralizedRCNN": ("MODEL.RPN.IN_FEATURES", *_ANCHOR_KEYS),
    "RetinaNet": ("MODEL.RETINANET.IN_FEATURES", *_ANCHOR_KEYS),
    "FCOS": ("MODEL.FCOS.IN_FEATURES",),
    "GFL": ("MODEL.GFL.IN_FEATURES",),
}


def _get(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _check_keys(cfg: CfgNode, teacher_cfg: CfgNode, keys: Iterable[str], why: str) -> None:
    for key in keys:
        ours, theirs = _get(cfg, key), _get(teacher_cfg, key)
        if ours != theirs:
            raise ValueError(
                f"{key} is {ours} for the student and {theirs} for the teacher, but {why}: set "
                f"{key} to {theirs}, or choose another DISTILL.TEACHER.CONFIG_FILE"
            )


def check_pair(cfg: CfgNode, teacher_cfg: CfgNode, requires: FrozenSet[str]) -> None:
    """Compare the two configs in everything that the enabled losses rely on.

    Args:
        cfg, teacher_cfg: the student's and the teacher's full configs.
        requires: what the losses read from the teacher (``Wanted.requires``).

    Raises:
        ValueError: names the key, both values, and what to set it to.
    """
    family, wants_heads = cfg.MODEL.META_ARCHITECTURE, requires - {"features"}
    if not wants_heads and cfg.DISTILL.PROPOSALS != "union":
        return
    why = "the enabled losses compare their heads"
    _check_keys(cfg, teacher_cfg, ["MODEL.META_ARCHITECTURE"], why)
    if wants_heads & {"logits", "deltas"} or family != "GeneralizedRCNN":
        _check_keys(cfg, teacher_cfg, [_CLASS_KEYS[family]], why)
    if "dense_logits" in wants_heads or family != "GeneralizedRCNN":
        _check_keys(cfg, teacher_cfg, _DENSE_KEYS[family], why)
    if wants_heads & {"logits", "deltas", "box_bins"}:
        _check_keys(cfg, teacher_cfg, _BOX_KEYS[family], "they must mean the same box")


def check_levels(levels: Iterable[str], student: nn.Module, teacher: nn.Module) -> None:
    """Every distilled level must be there on both sides, at the same stride.

    Args:
        levels: names from DISTILL.FEATURE.LEVELS.
        student, teacher: detectors with a ``backbone`` of ``output_shape()``.

    Raises:
        ValueError: names the level and the key.
    """
    shapes = {"student": student.backbone.output_shape(), "teacher": teacher.backbone.output_shape()}
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
    pads = {"student": student.backbone.size_divisibility, "teacher": teacher.backbone.size_divisibility}
    if len(set(pads.values())) > 1:
        raise ValueError(
            f"the backbones pad images to multiples of {pads}, so their features do not align: "
            "choose another DISTILL.TEACHER.CONFIG_FILE"
        )
