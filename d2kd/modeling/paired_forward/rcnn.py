# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The paired forward of two-stage detectors: GeneralizedRCNN with an FPN.

Shape shorthand in this file:
    N: images; A: anchors per location; H, W: size of a feature level
    R: regions = the student's positive proposals of all images; K: foreground classes
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ...structures import DetectorOutputs, DistillStep
from ..teacher import FrozenTeacher
from ..teacher_cache.cached_maps import MapsByPart
from .box_coders import box_coder_of
from .ground_truth import cat_ground_truth
from .registry import PAIR_FORWARD_REGISTRY, RequiredOutputs
from .visualization import is_visualized

__all__ = ["Regions", "forward_pair_rcnn", "teacher_outputs", "teacher_parts", "teacher_proposals"]


class Regions(NamedTuple):
    """Boxes on which the teacher's box head runs.

    Attributes:
        boxes: of each image, R in all.
        labels: (R,) class of each box, 0..K-1, whose deltas are taken.
    """

    boxes: list[Boxes]
    labels: Tensor


@PAIR_FORWARD_REGISTRY.register()
def forward_pair_rcnn(
    student: nn.Module, teacher: FrozenTeacher, batch: list[dict], required: RequiredOutputs
) -> tuple[dict[str, Tensor], DistillStep]:
    """Run the student's training forward once, and the teacher on the student's positives.

    Args:
        student: GeneralizedRCNN with SharedProposalROIHeads.
        teacher: of the same box encoding and, where its heads are read, the same classes.
        batch: what the data loader gave, with "instances".
        required: what the losses need, and whose proposals are sampled.

    Returns:
        dict of the student's own losses, bit-equal to stock; DistillStep.
    """
    images = student.preprocess_image(batch)
    gt_instances = [x["instances"].to(student.device) for x in batch]
    features = student.backbone(images.tensor)
    proposals, dense_logits, rpn_losses = _run_rpn(
        student.proposal_generator, images, features, gt_instances
    )
    maps = teacher.maps(batch, images, *teacher_parts(teacher, required))
    teacher_features, teacher_dense = maps["features"], maps.get("dense_logits")
    if required.proposals == "union":
        theirs, teacher_dense = teacher_proposals(teacher, teacher_features, images.image_sizes)
        proposals = [_union(*pair) for pair in zip(proposals, theirs)]
    sampled, head_losses = student.roi_heads(images, features, proposals, gt_instances)
    if is_visualized(student):
        student.visualize_training(batch, proposals)

    positives = [_positives(p, student.roi_heads.num_classes) for p in sampled]
    labels = torch.cat([p.gt_classes for p in positives])
    regions = Regions([p.proposal_boxes for p in positives], labels)
    gt_boxes, gt_image = cat_ground_truth(gt_instances)
    step = DistillStep(
        student=DetectorOutputs(features, dense_logits, *_predictions(positives, labels)),
        teacher=teacher_outputs(teacher, teacher_features, regions, required, teacher_dense),
        num_images=len(batch),
        strides={name: spec.stride for name, spec in student.backbone.output_shape().items()},
        gt_boxes=gt_boxes,
        gt_image=gt_image,
        regions=Boxes.cat(regions.boxes).tensor,
        labels=labels,
        region_gt_boxes=Boxes.cat([_matched_boxes(p) for p in positives]).tensor,
        activation="softmax",
        box_coder=box_coder_of(student.roi_heads.box_predictor),
    )
    return {**head_losses, **rpn_losses}, step


def _run_rpn(
    rpn: RPN, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances]
) -> tuple[list[Instances], dict[str, Tensor], dict[str, Tensor]]:
    """RPN.forward in its own parts, because it does not return the (N, A, H, W) logits."""
    level_features = [features[f] for f in rpn.in_features]
    anchors = rpn.anchor_generator(level_features)
    dense_logits, dense_deltas = rpn.rpn_head(level_features)
    logits, deltas = _flatten(rpn, dense_logits, dense_deltas)
    gt_labels, gt_boxes = rpn.label_and_sample_anchors(anchors, gt_instances)
    losses = rpn.losses(anchors, logits, gt_labels, deltas, gt_boxes)
    proposals = rpn.predict_proposals(anchors, logits, deltas, images.image_sizes)
    return proposals, dict(zip(rpn.in_features, dense_logits)), losses


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
    regions: Regions,
    required: RequiredOutputs,
    dense_logits: dict[str, Tensor] | None = None,
) -> DetectorOutputs:
    """Run those heads of the teacher that the losses require.

    Args:
        teacher: of any family, if only "features" are required.
        features: of the teacher's backbone, from ``teacher.features``.
        regions: the student's positives.
        required: what the losses need.
        dense_logits: those that ``teacher_proposals`` gave; else they are computed if required.
    """
    if dense_logits is None:
        dense_logits = {}
        if "dense_logits" in required.requires:
            dense_logits = _objectness(teacher, features)
    if not required.requires & {"logits", "deltas"}:
        return DetectorOutputs(features, dense_logits)
    logits, deltas = _run_box_head(teacher, features, regions.boxes)
    return DetectorOutputs(features, dense_logits, logits, _of_class(deltas, regions.labels))


def _objectness(teacher: FrozenTeacher, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Level -> (N, A, H, W): the class branch of the teacher's RPN alone."""
    rpn = teacher.model.proposal_generator
    head, levels = rpn.rpn_head, rpn.in_features
    with teacher.computing():
        logits = {name: head.objectness_logits(head.conv(features[name])) for name in levels}
    return teacher.as_float32(logits)


def _run_box_head(
    teacher: FrozenTeacher, features: dict[str, Tensor], boxes: list[Boxes]
) -> tuple[Tensor, Tensor]:
    """The teacher's logits (R, K + 1) and deltas (R, 4 or 4 * K) of these boxes."""
    heads = teacher.model.roi_heads
    # Not in half precision, in which the pooler would round the boxes' corners as well.
    pooled = heads.box_pooler([features[f] for f in heads.box_in_features], boxes)
    with teacher.computing():
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
    return teacher.as_float32(logits), teacher.as_float32(deltas)


def _flatten(
    rpn: RPN, logits: list[Tensor], deltas: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """(N, A, H, W) and (N, A * 4, H, W) per level to (N, H * W * A) and (N, H * W * A, 4)."""
    dim = rpn.anchor_generator.box_dim
    return (
        [x.permute(0, 2, 3, 1).flatten(1) for x in logits],
        [x.unflatten(1, (-1, dim)).permute(0, 3, 4, 1, 2).flatten(1, -2) for x in deltas],
    )


def _union(ours: Instances, theirs: Instances) -> Instances:
    """The student's and the teacher's proposals of one image, to be sampled from together."""
    return Instances.cat([ours, Instances(ours.image_size, **theirs.get_fields())])


def _positives(proposals: Instances, num_classes: int) -> Instances:
    """The sampled proposals of one image that a ground-truth box was matched to."""
    labels = proposals.gt_classes
    return proposals[((labels >= 0) & (labels < num_classes)).nonzero().squeeze(1)]


def _matched_boxes(positives: Instances) -> Boxes:
    """Detectron2 sets no gt_boxes in an image without ground truth, which has no positives."""
    return positives.gt_boxes if positives.has("gt_boxes") else positives.proposal_boxes


def _predictions(positives: list[Instances], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The student's logits (R, K + 1) and class-selected deltas (R, 4)."""
    deltas = torch.cat([p.pred_deltas for p in positives])
    return torch.cat([p.pred_logits for p in positives]), _of_class(deltas, labels)


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """(R, 4) of each region's class from class-specific (R, 4 * K) or class-agnostic (R, 4)."""
    if deltas.shape[1] == 4:
        return deltas
    rows = torch.arange(len(labels), device=labels.device)
    return deltas.unflatten(1, (-1, 4))[rows, labels]
