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

from ...config.detectors import detector_of
from ...structures import DetectorOutputs, DistillStep, LevelAnchors
from ..meta_arch.fcos_head import ScaledFCOSHead
from ..meta_arch.gfl.losses import expected_distance
from ..teacher import FrozenTeacher
from .box_coders import box_coder_of
from .cross_head import (
    cross_predictions,
    run_student_head,
    teacher_box_branch,
    teacher_class_branch,
)
from .ground_truth import cat_ground_truth
from .positives import LevelPositives, find_positives, gather, rows_of_all_levels
from .registry import PAIR_FORWARD_REGISTRY, RequiredOutputs
from .visualization import is_visualized

__all__ = ["forward_pair_dense", "teacher_outputs"]

# Fields of DetectorOutputs that the box branch gives.
_BOX_OUTPUTS = frozenset({"deltas", "box_bins", "dense_deltas", "dense_box_bins"})


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
    teacher_features = teacher.features(batch, images)
    rows = rows_of_all_levels(positives)
    all_gt_boxes, gt_image = cat_ground_truth(gt_instances)
    theirs = teacher_outputs(teacher, teacher_features, positives, required)
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


@torch.no_grad()
def teacher_outputs(
    teacher: FrozenTeacher,
    features: dict[str, Tensor],
    regions: list[LevelPositives] | None,
    required: RequiredOutputs,
) -> DetectorOutputs:
    """Run those branches of the teacher's head that the losses require.

    Args:
        teacher: of any family, if only "features" are required.
        features: of the teacher's backbone, from ``teacher.features``.
        regions: the student's positives. None: no rows are taken of the maps, where only the time
            of the branches counts.
        required: what the losses need.
    """
    requires, outputs = required.requires, {}
    if requires <= {"features"}:
        return DetectorOutputs(features=features)
    levels = teacher.model.head_in_features
    maps = [features[name] for name in levels]
    if requires & {"dense_logits", "logits"}:
        logits, statistics = _class_logits(teacher, maps, required.cross_head)
        outputs["cls_statistics"] = dict(zip(levels, statistics))
        outputs["dense_logits"] = dict(zip(levels, logits))
        if "logits" in requires and regions is not None:
            outputs["logits"] = gather(regions, logits)
    if requires & _BOX_OUTPUTS:
        boxes, statistics = _box_maps(teacher, maps, required.cross_head)
        outputs["box_statistics"] = dict(zip(levels, statistics))
        if regions is not None:
            outputs.update(_box_outputs(gather(regions, boxes)))
            outputs.update(_dense_boxes(regions, boxes, required))
    return DetectorOutputs(features=features, **outputs)


def _class_logits(
    teacher: FrozenTeacher, features: list[Tensor], cross_head: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Run the class branch alone: (N, A * K, H, W) for each level; statistics for a cross-head."""
    if cross_head:
        return teacher_class_branch(teacher, features, cross_head)
    head = teacher.model.head
    with teacher.computing():
        if detector_of(teacher.model).has_box_bins:
            return teacher.as_float32(head.class_logits(features)), []
        return teacher.as_float32([head.cls_score(head.cls_subnet(x)) for x in features]), []


def _box_maps(
    teacher: FrozenTeacher, features: list[Tensor], cross_head: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Run the box branch alone, without centerness; (N, A * D, H, W) for each level, and so on."""
    if cross_head:
        return teacher_box_branch(teacher, features, cross_head)
    head = teacher.model.head
    with teacher.computing():
        if detector_of(teacher.model).has_box_bins:
            return teacher.as_float32(head.box_bins(features)), []
        if isinstance(head, ScaledFCOSHead):
            return teacher.as_float32(head.box_deltas(features)), []
        return teacher.as_float32([head.bbox_pred(head.bbox_subnet(x)) for x in features]), []


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
    logits, boxes = predictions[:2]
    return DetectorOutputs(
        features=features,
        dense_logits=dict(zip(student.head_in_features, logits)),
        logits=gather(positives, logits),
        **_box_outputs(gather(positives, boxes)),
        **_dense_boxes(positives, boxes, required),
    )


def _dense_boxes(
    levels: list[LevelPositives], maps: list[Tensor], required: RequiredOutputs
) -> dict[str, dict[str, Tensor]]:
    """Those of dense_deltas and dense_box_bins that are required, from the box branch's maps."""
    found = {}
    if "dense_deltas" in required.requires:
        found["dense_deltas"] = {x.name: _deltas(x.all_of_map(m)) for x, m in zip(levels, maps)}
    if "dense_box_bins" in required.requires:
        found["dense_box_bins"] = {
            x.name: x.all_of_map(m).unflatten(2, (4, -1)) for x, m in zip(levels, maps)
        }
    return found


def _deltas(rows: Tensor) -> Tensor:
    """Rows (..., 4) of deltas as they are, those (..., 4 * E) of bins by their expectation."""
    return rows if rows.shape[-1] == 4 else expected_distance(rows.unflatten(-1, (4, -1)))


def _box_outputs(rows: Tensor) -> dict[str, Tensor]:
    """The fields of DetectorOutputs in rows (R, 4) of deltas or (R, 4 * E) of bins."""
    if rows.shape[1] == 4:
        return {"deltas": rows}
    return {"deltas": _deltas(rows), "box_bins": rows.unflatten(1, (4, -1))}
