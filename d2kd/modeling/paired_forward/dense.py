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

from typing import Any, NamedTuple

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn

from ...structures import DetectorOutputs, DistillStep, LevelAnchors
from ..meta_arch.gfl.gfl import GFL
from ..teacher import FrozenTeacher
from .box_coders import box_coder_of
from .cross_head import HeldFeatures, cross_predictions, run_student_head
from .dense_teacher import run_teacher, teacher_outputs, teacher_parts
from .features import describe_batch
from .positives import (
    LevelPositives,
    box_outputs,
    dense_boxes,
    find_positives,
    gather,
    rows_of_all_levels,
)
from .recorders import BackboneRecorder, Recorder, in_place_of
from .registry import PAIR_FORWARD_REGISTRY, RequiredOutputs

__all__ = ["forward_pair_dense", "teacher_outputs", "teacher_parts"]

_STOCK_TRAINING = (RetinaNet.forward_training, FCOS.forward_training, GFL.forward_training)


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
    run = _run_student if _has_stock_forward(student) else _run_own_forward
    ours = run(student, batch, required.cross_head)
    predictions, anchors = ours.predictions, ours.anchors
    labels = torch.stack(ours.gt_labels)
    positives = find_positives(student, ours.maps, anchors, labels)
    rows = rows_of_all_levels(positives)
    theirs = run_teacher(teacher, batch, ours.images, positives, required)
    compared = cross_predictions(teacher, ours.held, theirs, predictions, required.cross_head)
    step = DistillStep(
        student=_student_outputs(student, ours.features, compared, positives, required),
        teacher=theirs,
        **describe_batch(student, batch, ours.images.tensor),
        regions=Boxes.cat(anchors).tensor[rows[1]],
        labels=labels[rows],
        # Boxes in Detectron2 0.6's FCOS, tensors everywhere else.
        region_gt_boxes=torch.stack([getattr(x, "tensor", x) for x in ours.gt_boxes])[rows],
        activation="sigmoid",
        box_coder=box_coder_of(student),
        anchors=_level_anchors(student, anchors, labels),
        region_image=rows[0],
    )
    return ours.losses, step


class _StudentRun(NamedTuple):
    """One training forward of the student, and what the losses read of it."""

    losses: dict[str, Tensor]
    images: ImageList
    features: dict[str, Tensor]
    maps: list[Tensor]
    predictions: tuple[list[Tensor], ...]
    held: HeldFeatures
    anchors: list[Boxes]
    gt_labels: list[Tensor]
    gt_boxes: list[Any]


def _has_stock_forward(student: DenseDetector) -> bool:
    """Does its forward do what ``_run_student`` does, in the same order?"""
    return type(student).forward is DenseDetector.forward and (
        type(student).forward_training in _STOCK_TRAINING
    )


def _run_student(student: DenseDetector, batch: list[dict], cross_head: int) -> _StudentRun:
    """The stock forward in its own parts, which gives the anchors' labels without a second run."""
    images = student.preprocess_image(batch)
    gt_instances = [x["instances"].to(student.device) for x in batch]
    features = student.backbone(images.tensor)
    maps = [features[name] for name in student.head_in_features]
    predictions, held = run_student_head(student.head, maps, cross_head)
    anchors = student.anchor_generator(maps)
    gt_labels, gt_boxes = student.label_anchors(anchors, gt_instances)
    losses = _detection_losses(student, anchors, predictions, gt_labels, gt_boxes)
    return _StudentRun(
        *(losses, images, features, maps, predictions, held, anchors, gt_labels, gt_boxes)
    )


def _run_own_forward(student: DenseDetector, batch: list[dict], cross_head: int) -> _StudentRun:
    """A forward of the class's own, whatever it adds; the anchors are labelled again."""
    backbone = BackboneRecorder(student.backbone)
    head = _HeadRecorder(student.head, cross_head)
    with in_place_of(student, "backbone", backbone), in_place_of(student, "head", head):
        losses = student(batch)
    maps = head.inputs[0]
    anchors = student.anchor_generator(maps)
    gt_instances = [x["instances"].to(student.device) for x in batch]
    gt_labels, gt_boxes = student.label_anchors(anchors, gt_instances)
    return _StudentRun(
        *(losses, backbone.images(batch), backbone.features(), maps, head.output, head.held),
        *(anchors, gt_labels, gt_boxes),
    )


class _HeadRecorder(Recorder):
    """Stands in for a dense head, and holds its features before the last convolutions."""

    def __init__(self, part: nn.Module, cross_head: int):
        super().__init__(part)
        self.cross_head = cross_head
        self.held = HeldFeatures([], [])

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        self.inputs = (features,)
        self.output, self.held = run_student_head(self.part, features, self.cross_head)
        return self.output


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
