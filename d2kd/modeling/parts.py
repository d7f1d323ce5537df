# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The named parts of a detector: misspelt names and parts that do not fit, in a config's words."""

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    build_backbone,
    build_model,
)
from torch import nn

from ..config import get_value
from ..config.detectors import find_detector
from ..config.load import all_keys
from ..utils.errors import ConfigError, D2kdError
from ..utils.text import did_you_mean, first_line

__all__ = ["build_detector", "check_parts"]

_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
# Names that Detectron2 builds without the registry; "" builds no box head.
_MORE_NAMES = {
    "MODEL.PROPOSAL_GENERATOR.NAME": ("PrecomputedProposals",),
    "MODEL.ROI_BOX_HEAD.NAME": ("",),
}
_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def build_detector(cfg: CfgNode, whose: str = "the student's") -> nn.Module:
    """Detectron2's ``build_model``, which says of what does not fit which keys to look at.

    Args:
        cfg: of the detector.
        whose: "the student's" or "the teacher's", for messages.

    Raises:
        ConfigError: a part has an unknown name, or the parts do not fit each other.
    """
    check_parts(cfg, whose)
    try:
        return build_model(cfg)
    except D2kdError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError) as error:
        raise ConfigError(_describe(cfg, whose, error)) from error
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(_describe(cfg, whose, error)) from error


def check_parts(cfg: CfgNode, whose: str = "the student's") -> None:
    """Every name of a part is registered, every NORM known.

    Raises:
        ConfigError: lists each key, its value and the nearest name.
    """
    problems = [*_unknown_names(cfg), *_unknown_norms(cfg)]
    if problems:
        raise ConfigError("\n".join([f"{whose} config names parts that there are not:", *problems]))


def _unknown_names(cfg: CfgNode) -> Iterator[str]:
    for key, registry in _REGISTRIES.items():
        value, known = get_value(cfg, key), [name for name, _ in registry]
        if value not in (*known, *_MORE_NAMES.get(key, ())):
            nearest = did_you_mean(value, known)
            yield (
                f"  {key} is {value!r}: set it to one of {sorted(known)}, or import the module "
                f"that registers it.{nearest}"
            )


def _unknown_norms(cfg: CfgNode) -> Iterator[str]:
    for key in all_keys(cfg.MODEL, "MODEL."):
        # timm's network has its own; MODEL.TIMM is checked where it is built.
        if key.endswith(".NORM") and not key.startswith("MODEL.TIMM."):
            value = get_value(cfg, key)
            if value is not None and not _is_norm(value):
                hint = did_you_mean(value, _NORMS)
                yield f"  {key} is {value!r}: set it to one of {list(_NORMS)}.{hint}"


def _is_norm(value: str) -> bool:
    try:
        get_norm(value, 32)
    except Exception:  # of a dict, of the layer, or of what is no name
        return False
    return True


def _describe(cfg: CfgNode, whose: str, error: Exception) -> str:
    levels = _lacking_levels(cfg)
    if levels:
        return f"{whose} detector cannot be built: {levels}"
    parts = {key: get_value(cfg, key) for key in list(_REGISTRIES)[:2]}
    names = ", ".join(f"{key} {value!r}" for key, value in parts.items())
    return (
        f"{whose} detector cannot be built with {names} and the other keys of MODEL: "
        f"{type(error).__name__}: {first_line(error)}"
    )


def _lacking_levels(cfg: CfgNode) -> str:
    """Which levels a head reads that the backbone does not give; "" if that is not the fault."""
    row = find_detector(cfg)
    keys = [row.dense_levels_key if row else None, "MODEL.ROI_HEADS.IN_FEATURES"]
    if row is None or not row.two_stage or "logits" not in row.outputs:
        keys.pop()
    try:
        given = list(build_backbone(cfg).output_shape())
    except Exception as error:  # then the backbone itself is at fault
        return f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r}: {first_line(error)}"
    for key in filter(None, keys):
        lacking = [name for name in get_value(cfg, key) if name not in given]
        if lacking:
            return (
                f"{key} has {lacking}, but MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r} gives "
                f"only {given}"
            )
    return ""
