# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What the losses read of a teacher with proposals: its RPN, and its box heads on given regions.

Shape shorthand in this file:
    N: images; A: anchors per location; H, W: size of a feature level
    R: regions = the student's positive proposals of all images
"""

from collections.abc import Callable

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.structures import Instances
from torch import Tensor

from ...structures import DetectorOutputs
from ..teacher import FrozenTeacher
from ..teacher_cache.cached_maps import MapsByPart
from .box_heads import Regions, box_predictions, deltas_of_regions
from .registry import RequiredOutputs

__all__ = ["teacher_outputs", "teacher_parts", "teacher_proposals"]


def teacher_parts(
    teacher: FrozenTeacher, required: RequiredOutputs
) -> tuple[list[str], Callable[[dict[str, Tensor]], MapsByPart]]:
    """The maps of the teacher that do not depend on the student, and what makes them of features.

    The box head runs on the student's proposals, and "union" runs the whole RPN.
    """
    if "dense_logits" not in required.requires or required.proposals == "union":
        return ["features"], lambda features: {"features": features}

    def run_rpn(features: dict[str, Tensor]) -> MapsByPart:
        return {"features": features, "dense_logits": _objectness(teacher, features)}

    return ["features", "dense_logits"], run_rpn


@torch.no_grad()
def teacher_proposals(
    teacher: FrozenTeacher, features: dict[str, Tensor], image_sizes: list[tuple[int, int]]
) -> tuple[list[Instances], dict[str, Tensor]]:
    """The teacher's own proposals, for DISTILL.PROPOSALS "union".

    Args:
        features: of the teacher's backbone.
        image_sizes: height and width of each image before padding, to which boxes are clipped.

    Returns:
        proposals of each image; dict of the RPN's (N, A, H, W) logits, which come with them.
    """
    rpn = teacher.model.proposal_generator
    level_features = [features[f] for f in rpn.in_features]
    anchors = rpn.anchor_generator(level_features)
    with teacher.computing():
        outputs = rpn.rpn_head(level_features)
    logits, deltas = teacher.as_float32(outputs)
    proposals = rpn.predict_proposals(anchors, *_flatten(rpn, logits, deltas), image_sizes)
    return proposals, dict(zip(rpn.in_features, logits))


@torch.no_grad()
def teacher_outputs(
    teacher: FrozenTeacher,
    features: dict[str, Tensor],
    regions: Regions | None,
    required: RequiredOutputs,
    dense_logits: dict[str, Tensor] | None = None,
) -> DetectorOutputs:
    """Run those heads of the teacher that the losses require.

    Args:
        teacher: of any family, if only "features" are required.
        features: of the teacher's backbone, from ``teacher.features``.
        regions: the student's positives; None where no loss reads the box heads.
        required: what the losses need.
        dense_logits: those that ``teacher_proposals`` gave; else they are computed if required.
    """
    if dense_logits is None:
        dense_logits = {}
        if "dense_logits" in required.requires:
            dense_logits = _objectness(teacher, features)
    if not required.requires & {"logits", "deltas"}:
        return DetectorOutputs(features, dense_logits)
    found = box_predictions(teacher.model.roi_heads, teacher, features, regions)
    return DetectorOutputs(features, dense_logits, found.logits, deltas_of_regions(found, regions))


def _objectness(teacher: FrozenTeacher, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Level -> (N, A, H, W): the class branch of the teacher's RPN, alone where it can run so."""
    rpn = teacher.model.proposal_generator
    head, levels = rpn.rpn_head, rpn.in_features
    with teacher.computing():
        if type(head).forward is StandardRPNHead.forward:
            logits = [head.objectness_logits(head.conv(features[name])) for name in levels]
        else:
            logits = head([features[name] for name in levels])[0]
    return dict(zip(levels, teacher.as_float32(list(logits))))


def _flatten(
    rpn: RPN, logits: list[Tensor], deltas: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """(N, A, H, W) and (N, A * 4, H, W) per level to (N, H * W * A) and (N, H * W * A, 4)."""
    dim = rpn.anchor_generator.box_dim
    return (
        [x.permute(0, 2, 3, 1).flatten(1) for x in logits],
        [x.unflatten(1, (-1, dim)).permute(0, 3, 4, 1, 2).flatten(1, -2) for x in deltas],
    )
