# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The paired forward of dense detectors: RetinaNet, FCOS, GFL and others of their structure.

The regions are anchors, or points as square boxes: student and teacher have the same ones by
construction. A detector can run here if it has, as Detectron2's RetinaNet has,

* ``backbone``, ``head``, ``head_in_features``, ``anchor_generator``, ``box2box_transform``,
  ``num_classes``, ``label_anchors(anchors, gt_instances)`` and
  ``losses(anchors, logits, gt_labels, boxes, gt_boxes, *others)``;
* a head whose forward returns lists of per-level maps ``(logits, boxes, *others)``, and which can
  run one branch alone. A head of four deltas per box has RetinaNetHead's layers (``cls_subnet``,
  ``cls_score``, ``bbox_subnet``, ``bbox_pred``). A head of box-edge bins (``Detector.outputs``
  holds "box_bins") has GFLHead's methods ``class_logits(features)`` and ``box_bins(features)``.

Shape shorthand in this file:
    N: images; A: anchors per location; H, W: size of a feature level
    D: values per anchor: K foreground classes, 4 deltas, or 4 * E, E bins for each of them
    R: regions = the student's positives of all images together
"""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.structures import Boxes
from torch import Tensor

from ...config.detectors import detector_of
from ...structures import DetectorOutputs, DistillStep
from ..meta_arch.gfl.losses import expected_distance
from ..teacher import FrozenTeacher
from ..teacher_cache.cached_maps import MapsByPart
from .box_coders import box_coder_of
from .ground_truth import cat_ground_truth
from .positives import LevelPositives, find_positives, gather, rows_of_all_levels
from .registry import PAIR_FORWARD_REGISTRY, RequiredOutputs

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
    predictions = student.head(maps)
    anchors = student.anchor_generator(maps)
    gt_labels, gt_boxes = student.label_anchors(anchors, gt_instances)
    losses = _detection_losses(student, anchors, predictions, gt_labels, gt_boxes)

    labels = torch.stack(gt_labels)
    positives = find_positives(student, maps, anchors, labels)
    maps = teacher.maps(batch, images, *teacher_parts(teacher, required))
    rows = rows_of_all_levels(positives)
    all_gt_boxes, gt_image = cat_ground_truth(gt_instances)
    step = DistillStep(
        student=_student_outputs(student, features, predictions, positives),
        teacher=_select(maps, positives, required),
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
    )
    return losses, step


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
    _, run_heads = teacher_parts(teacher, required)
    return _select(run_heads(features), regions, required)


def teacher_parts(
    teacher: FrozenTeacher, required: RequiredOutputs
) -> tuple[list[str], Callable[[dict[str, Tensor]], MapsByPart]]:
    """The maps that the losses read, and what makes them of the backbone's features."""
    readers = {
        "features": {"features"},
        "dense_logits": {"dense_logits", "logits"},
        "box_maps": {"deltas", "box_bins"},
    }
    parts = [part for part, read_by in readers.items() if required.requires & read_by]
    return parts, lambda features: _teacher_maps(teacher, features, parts)


def _teacher_maps(
    teacher: FrozenTeacher, features: dict[str, Tensor], parts: list[str]
) -> MapsByPart:
    """The features, and of the head's branches those that are asked for."""
    maps = {"features": features}
    if not set(parts) - {"features"}:
        return maps
    levels = teacher.model.head_in_features
    inputs = [features[name] for name in levels]
    if "dense_logits" in parts:
        maps["dense_logits"] = dict(zip(levels, _class_logits(teacher, inputs)))
    if "box_maps" in parts:
        maps["box_maps"] = dict(zip(levels, _box_maps(teacher, inputs)))
    return maps


def _select(
    maps: MapsByPart, regions: list[LevelPositives] | None, required: RequiredOutputs
) -> DetectorOutputs:
    """What the losses read of the teacher's maps; a cache gives no features that none reads."""
    outputs: dict[str, Any] = {"features": maps.get("features", {})}
    logits, boxes = maps.get("dense_logits"), maps.get("box_maps")
    if logits is not None:
        outputs["dense_logits"] = logits
        if "logits" in required.requires and regions is not None:
            outputs["logits"] = gather(regions, logits)
    if boxes is not None and regions is not None:
        outputs.update(_box_outputs(gather(regions, boxes)))
    return DetectorOutputs(**outputs)


def _class_logits(teacher: FrozenTeacher, features: list[Tensor]) -> list[Tensor]:
    """Run the class branch alone: (N, A * K, H, W) for each level."""
    head = teacher.model.head
    with teacher.computing():
        if detector_of(teacher.model).has_box_bins:
            return teacher.as_float32(head.class_logits(features))
        return teacher.as_float32([head.cls_score(head.cls_subnet(x)) for x in features])


def _box_maps(teacher: FrozenTeacher, features: list[Tensor]) -> list[Tensor]:
    """Run the box branch alone, without centerness: (N, A * D, H, W) for each level."""
    head = teacher.model.head
    with teacher.computing():
        if detector_of(teacher.model).has_box_bins:
            return teacher.as_float32(head.box_bins(features))
        return teacher.as_float32([head.bbox_pred(head.bbox_subnet(x)) for x in features])


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
) -> DetectorOutputs:
    """The student's maps, and its head's rows of the positives."""
    logits, boxes = (dict(zip(student.head_in_features, maps)) for maps in predictions[:2])
    return DetectorOutputs(
        features=features,
        dense_logits=logits,
        logits=gather(positives, logits),
        **_box_outputs(gather(positives, boxes)),
    )


def _box_outputs(rows: Tensor) -> dict[str, Tensor]:
    """The fields of DetectorOutputs in rows (R, 4) of deltas or (R, 4 * E) of bins."""
    if rows.shape[1] == 4:
        return {"deltas": rows}
    bins = rows.unflatten(1, (4, -1))
    return {"deltas": expected_distance(bins), "box_bins": bins}
