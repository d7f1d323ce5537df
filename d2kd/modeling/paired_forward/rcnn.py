# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How a two-stage detector (GeneralizedRCNN with an FPN) and its teacher are observed.

Shape shorthand in this file:
    N: images; A: anchors per location; H, W: size of a feature level
    R: regions = the student's positive proposals of all images; K: foreground classes
"""

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ...structures import DetectorOutputs, DistillStep
from ..teacher import FrozenTeacher
from .box_coders import box_coder_of
from .ground_truth import cat_ground_truth
from .registry import RequiredOutputs, register_paired_forward
from .visualization import is_visualized

__all__ = ["forward_pair_rcnn"]


@register_paired_forward("GeneralizedRCNN")
def forward_pair_rcnn(
    student: nn.Module, teacher: FrozenTeacher, batch: list[dict], required: RequiredOutputs
) -> tuple[dict[str, Tensor], DistillStep]:
    """Train-forward the student once; let the teacher answer for the student's positives.

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
    teacher_features = teacher.features(batch, images)
    teacher_dense, teacher_proposals = _run_teacher_rpn(teacher, images, teacher_features, required)
    if teacher_proposals:
        proposals = [_union(*pair) for pair in zip(proposals, teacher_proposals)]
    sampled, head_losses = student.roi_heads(images, features, proposals, gt_instances)
    if is_visualized(student):
        student.visualize_training(batch, proposals)

    positives = [_positives(p, student.roi_heads.num_classes) for p in sampled]
    labels = torch.cat([p.gt_classes for p in positives])
    theirs = _run_teacher_box_head(teacher, teacher_features, positives, labels, required)
    gt_boxes, gt_image = cat_ground_truth(gt_instances)
    step = DistillStep(
        student=DetectorOutputs(features, dense_logits, *_predictions(positives, labels)),
        teacher=DetectorOutputs(teacher_features, teacher_dense, *theirs),
        num_images=len(batch),
        strides={name: spec.stride for name, spec in student.backbone.output_shape().items()},
        gt_boxes=gt_boxes,
        gt_image=gt_image,
        regions=Boxes.cat([p.proposal_boxes for p in positives]).tensor,
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


@torch.no_grad()
def _run_teacher_rpn(
    teacher: FrozenTeacher,
    images: ImageList,
    features: dict[str, Tensor],
    required: RequiredOutputs,
) -> tuple[dict[str, Tensor], list[Instances]]:
    """The teacher's objectness and proposals, each only if somebody reads it."""
    if "dense_logits" not in required.requires and required.proposals != "union":
        return {}, []
    rpn = teacher.model.proposal_generator
    level_features = [features[f] for f in rpn.in_features]
    if required.proposals != "union":
        head = rpn.rpn_head
        dense_logits = [
            teacher.call(lambda x: head.objectness_logits(head.conv(x)), x) for x in level_features
        ]
        return dict(zip(rpn.in_features, dense_logits)), []
    anchors = rpn.anchor_generator(level_features)
    dense_logits, dense_deltas = teacher.call(rpn.rpn_head, level_features)
    proposals = rpn.predict_proposals(
        anchors, *_flatten(rpn, dense_logits, dense_deltas), images.image_sizes
    )
    return dict(zip(rpn.in_features, dense_logits)), proposals


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


@torch.no_grad()
def _run_teacher_box_head(
    teacher: FrozenTeacher,
    features: dict[str, Tensor],
    positives: list[Instances],
    labels: Tensor,
    required: RequiredOutputs,
) -> tuple[Tensor | None, Tensor | None]:
    """The teacher's logits (R, K + 1) and class-selected deltas (R, 4) on the student's regions."""
    if not required.requires & {"logits", "deltas"}:
        return None, None
    heads: StandardROIHeads = teacher.model.roi_heads
    regions = [p.proposal_boxes for p in positives]
    # Not in half precision, in which the pooler would round the regions' corners as well.
    pooled = heads.box_pooler([features[f] for f in heads.box_in_features], regions)
    logits, deltas = teacher.call(lambda x: heads.box_predictor(heads.box_head(x)), pooled)
    return logits, _of_class(deltas, labels)


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """(R, 4) of each region's class from class-specific (R, 4 * K) or class-agnostic (R, 4)."""
    if deltas.shape[1] == 4:
        return deltas
    rows = torch.arange(len(labels), device=labels.device)
    return deltas.unflatten(1, (-1, 4))[rows, labels]
