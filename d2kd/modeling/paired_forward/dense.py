# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The paired forward of dense detectors: RetinaNet, FCOS, GFL and others of their structure.

The regions are anchors, or points as square boxes: student and teacher have the same ones by
construction. A detector can run here if it has, as Detectron2's RetinaNet has,

* ``backbone``, ``head``, ``head_in_features``, ``anchor_generator``, ``box2box_transform``,
  ``num_classes``, ``label_anchors(anchors, gt_instances)`` and
  ``losses(anchors, logits, gt_labels, boxes, gt_boxes, *others)``;
* a head whose forward returns lists of per-level maps ``(logits, boxes, *others)``, and which can
  run one branch alone. A head of four deltas per box has RetinaNetHead's layers (``cls_subnet``,
  ``cls_score``, ``bbox_subnet``, ``bbox_pred``), and ScaledFCOSHead ``box_deltas(features)``. A
  head of box-edge bins (``Detector.outputs`` holds "box_bins") has GFLHead's methods
  ``class_logits(features)`` and ``box_bins(features)``.

Shape shorthand in this file:
    N: images; A: anchors per location; H, W: size of a feature level
    D: values per anchor: K foreground classes, 4 deltas, or 4 * E, E bins for each of them
    R: regions = the student's positives of all images together
"""

from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.structures import Boxes
from torch import Tensor

from ...structures import DetectorOutputs, DistillStep, LevelAnchors
from ..teacher import FrozenTeacher
from .box_coders import box_coder_of
from .cross_head import (
    cross_predictions,
    run_student_head,
)
from .dense_teacher import run_teacher, teacher_outputs, teacher_parts
from .ground_truth import cat_ground_truth
from .positives import (
    LevelPositives,
    box_outputs,
    dense_boxes,
    find_positives,
    gather,
    rows_of_all_levels,
)
from .registry import PAIR_FORWARD_REGISTRY, RequiredOutputs
from .visualization import is_visualized

__all__ = ["forward_pair_dense", "teacher_outputs", "teacher_parts"]


@PAIR_FORWARD_REGISTRY.register()
def forward_pair_dense(
    student: DenseDetector, teacher: FrozenTeacher, batch: list[dict], required: RequiredOutputs
) -> tuple[dict[str, Tensor], DistillStep]:
    """Run the student's training forward once, and the teacher on the student's positives.

    Args:
        student: in training mode.
        teacher: with the student's anchors and classes where its head is read.
        batch: what the data loader gave, with "instances".
        required: what the losses need; there are no proposals to choose.

    Returns:
        dict of the student's own losses, bit-equal to its training forward; DistillStep.
    """
    images = student.preprocess_image(batch)
    gt_instances = [x["instances"].to(student.device) for x in batch]
    features = student.backbone(images.tensor)
    maps = [features[name] for name in student.head_in_features]
    predictions, held = run_student_head(student.head, maps, required.cross_head)
    anchors = student.anchor_generator(maps)
    gt_labels, gt_boxes = student.label_anchors(anchors, gt_instances)
    losses = _detection_losses(student, anchors, predictions, gt_labels, gt_boxes)
    if is_visualized(student):
        with torch.no_grad():
            found = student.forward_inference(images, maps, predictions)
        student.visualize_training(batch, found)

    labels = torch.stack(gt_labels)
    positives = find_positives(student, maps, anchors, labels)
    rows = rows_of_all_levels(positives)
    all_gt_boxes, gt_image = cat_ground_truth(gt_instances)
    theirs = run_teacher(teacher, batch, images, positives, required)
    compared = cross_predictions(teacher, held, theirs, predictions, required.cross_head)
    step = DistillStep(
        student=_student_outputs(student, features, compared, positives, required),
        teacher=theirs,
        num_images=len(batch),
        strides={name: spec.stride for name, spec in student.backbone.output_shape().items()},
        gt_boxes=all_gt_boxes,
        gt_image=gt_image,
        regions=Boxes.cat(anchors).tensor[rows[1]],
        labels=labels[rows],
        # Boxes in Detectron2 0.6's FCOS, tensors everywhere else.
        region_gt_boxes=torch.stack([getattr(x, "tensor", x) for x in gt_boxes])[rows],
        activation="sigmoid",
        box_coder=box_coder_of(student),
        anchors=_level_anchors(student, anchors, labels),
    )
    return losses, step


def _level_anchors(
    student: DenseDetector, anchors: list[Boxes], labels: Tensor
) -> dict[str, LevelAnchors]:
    """From ``labels`` (N, anchors of all levels), -1 for ignored."""
    valid = (labels >= 0).split([len(x) for x in anchors], dim=1)
    return {
        name: LevelAnchors(boxes.tensor, flags)
        for name, boxes, flags in zip(student.head_in_features, anchors, valid)
    }


def _detection_losses(
    model: DenseDetector,
    anchors: list[Boxes],
    predictions: tuple[list[Tensor], ...],
    gt_labels: list[Tensor],
    gt_boxes: list[Any],
) -> dict[str, Tensor]:
    """The second half of the model's own training forward, on labels that we need as well."""

    def transpose(maps: list[Tensor]) -> list[Tensor]:
        per_cell = [len(a) // x[0, 0].numel() for a, x in zip(anchors, maps)]
        return [permute_to_N_HWA_K(x, x.shape[1] // a) for a, x in zip(per_cell, maps)]

    logits, boxes, *others = [transpose(maps) for maps in predictions]
    return model.losses(anchors, logits, gt_labels, boxes, gt_boxes, *others)


def _student_outputs(
    student: DenseDetector,
    features: dict[str, Tensor],
    predictions: tuple[list[Tensor], ...],
    positives: list[LevelPositives],
    required: RequiredOutputs,
) -> DetectorOutputs:
    """The features, the predictions, and their rows of positives and, if required, of anchors."""
    logits, boxes = (dict(zip(student.head_in_features, maps)) for maps in predictions[:2])
    return DetectorOutputs(
        features=features,
        dense_logits=logits,
        logits=gather(positives, logits),
        **box_outputs(gather(positives, boxes)),
        **dense_boxes(positives, boxes, required),
    )
