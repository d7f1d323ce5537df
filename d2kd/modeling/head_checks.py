# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Whether the parts that losses read can be read, of detectors with proposals, by their classes."""

import re
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rrpn import RRPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import nn

from ..config.detectors import detector_of
from ..utils.errors import D2kdError, PairMismatchError
from .compatibility import WITHOUT, check_levels, check_pair
from .paired_forward.box_heads import can_predict

__all__ = ["check_heads", "why_unreadable"]

_ON_REGIONS = frozenset({"logits", "deltas"})


def check_heads(
    student: nn.Module, teacher: nn.Module, requires: frozenset[str], union: bool
) -> None:
    """Look at the parts that the losses read, and at no other.

    Args:
        student, teacher: the detectors.
        requires: what the losses read from the teacher (``RequiredOutputs.requires``).
        union: DISTILL.PROPOSALS is "union".

    Raises:
        PairMismatchError: names the part's class, why it cannot be read, and what to set.
    """
    if isinstance(getattr(student, "proposal_generator", None), RRPN):
        raise PairMismatchError(
            "the student's RRPN has rotated boxes, and masks and losses know upright ones: this "
            "detector cannot be a student (DISTILL.ENABLED False trains it without a teacher)"
        )
    if not detector_of(student).two_stage:
        return
    for whose, model in (("the student's", student), ("the teacher's", teacher)):
        rpn = getattr(model, "proposal_generator", None)
        if union and not isinstance(rpn, RPN):
            raise PairMismatchError(_describe_rpn(whose, rpn, "DISTILL.PROPOSALS to 'student'"))
        if "dense_logits" in requires and not isinstance(rpn, RPN):
            raise PairMismatchError(_describe_rpn(whose, rpn, WITHOUT["dense_logits"]))
        if requires & _ON_REGIONS:
            for reason in _unreadable(model.roi_heads, requires, runs=model is teacher):
                raise PairMismatchError(f"{whose} {type(model.roi_heads).__name__} {reason}")


def why_unreadable(
    cfg: CfgNode, teacher_cfg: CfgNode, student: nn.Module, teacher: nn.Module, output: str
) -> str:
    """Why losses of this pair cannot read an output of the teacher, without advice; "" if they can.

    Args:
        cfg, teacher_cfg: the student's and the teacher's full configs.
        output: a field of ``DetectorOutputs``.
    """
    try:
        check_pair(cfg, teacher_cfg, frozenset({output}))
        check_heads(student, teacher, frozenset({output}), union=False)
        if output == "features":
            levels = cfg.DISTILL.FEATURE.LEVELS or list(student.backbone.output_shape())
            check_levels(levels, student, teacher)
    except D2kdError as problem:
        return re.split(r": (?=set |register |choose )", str(problem))[0]
    return ""


def _describe_rpn(whose: str, part: nn.Module | None, advice: str) -> str:
    found = "proposals come from the data" if part is None else f"proposals are {_name(part)}'s"
    return f"{whose} {found}, not from an RPN, which is read: set {advice}"


def _name(part: nn.Module) -> str:
    return type(part).__name__


def _unreadable(heads: nn.Module, requires: frozenset[str], runs: bool) -> Iterator[str]:
    """Why the predictions of ROI heads cannot be read, each with what to set.

    Args:
        runs: on given regions, as a teacher's.
    """
    without = "set " + "; or ".join(WITHOUT[name] for name in sorted(requires & _ON_REGIONS))
    found = getattr(heads, "box_predictor", None)
    for part in found if isinstance(found, nn.ModuleList) else [found]:
        if not isinstance(part, FastRCNNOutputLayers):
            yield (
                "has no box_predictor that extends FastRCNNOutputLayers, whose logits and deltas "
                f"are read: {without}"
            )
        elif len(part.box2box_transform.weights) != 4:
            yield f"predicts rotated boxes, and the losses compare upright ones: {without}"
        elif "logits" in requires and getattr(part, "use_sigmoid_ce", False):
            yield (
                "scores classes by sigmoids (MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE), and the loss "
                f"'cls' compares softmaxes: set {WITHOUT['logits']}"
            )
    if runs and not can_predict(heads):
        yield (
            "predicts boxes in a way of its own: register it with "
            f"d2kd.modeling.paired_forward.box_heads.box_predictions, or {without}"
        )
