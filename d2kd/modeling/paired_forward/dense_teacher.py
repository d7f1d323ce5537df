# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What the losses read of a dense teacher: the branches of its head, or its cached maps.

Shape shorthand in this file:
    N: images; A: anchors per location; H, W: size of a feature level
    D: values per anchor; R: regions = the student's positives of all images together
"""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor

from ...config.detectors import detector_of
from ...structures import DetectorOutputs
from ..meta_arch.fcos_head import ScaledFCOSHead
from ..teacher import FrozenTeacher
from ..teacher_cache.cached_maps import MapsByPart
from .cross_head import teacher_box_branch, teacher_class_branch
from .positives import LevelPositives, box_outputs, dense_boxes, gather
from .registry import RequiredOutputs

__all__ = ["run_teacher", "teacher_outputs", "teacher_parts"]

# Fields of DetectorOutputs that the box branch gives.
_BOX_OUTPUTS = frozenset({"deltas", "box_bins", "dense_deltas", "dense_box_bins"})


def run_teacher(
    teacher: FrozenTeacher,
    batch: list[dict],
    images: ImageList,
    positives: list[LevelPositives],
    required: RequiredOutputs,
) -> DetectorOutputs:
    """What the losses read of the teacher, from its cache where there is one."""
    if required.cross_head:
        features = teacher.features(batch, images)
        return teacher_outputs(teacher, features, positives, required)
    maps = teacher.maps(batch, images, *teacher_parts(teacher, required))
    return _select(maps, {}, positives, required)


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
    maps, statistics = _teacher_maps(teacher, features, _parts(required), required.cross_head)
    return _select(maps, statistics, regions, required)


def teacher_parts(
    teacher: FrozenTeacher, required: RequiredOutputs
) -> tuple[list[str], Callable[[dict[str, Tensor]], MapsByPart]]:
    """The maps that a cache keeps of each image, and what makes them of the backbone's features.

    With DISTILL.CROSS_HEAD these are the features: the statistics of the head are a batch's.
    """
    parts = ["features"] if required.cross_head else _parts(required)
    return parts, lambda features: _teacher_maps(teacher, features, parts, 0)[0]


def _parts(required: RequiredOutputs) -> list[str]:
    """The kinds of maps that the losses read."""
    readers = {
        "features": {"features"},
        "dense_logits": {"dense_logits", "logits"},
        "box_maps": _BOX_OUTPUTS,
    }
    return [part for part, read_by in readers.items() if required.requires & read_by]


def _teacher_maps(
    teacher: FrozenTeacher, features: dict[str, Tensor], parts: list[str], cross_head: int
) -> tuple[MapsByPart, MapsByPart]:
    """The features and the head's branches that are asked for; statistics for a cross-head."""
    maps: MapsByPart = {"features": features}
    statistics: MapsByPart = {}
    if not set(parts) - {"features"}:
        return maps, statistics
    levels = teacher.model.head_in_features
    inputs = [features[name] for name in levels]
    for part, run in (("dense_logits", _class_logits), ("box_maps", _box_maps)):
        if part in parts:
            found, held = run(teacher, inputs, cross_head)
            maps[part] = dict(zip(levels, found))
            statistics[part] = dict(zip(levels, held))
    return maps, statistics


def _select(
    maps: MapsByPart,
    statistics: MapsByPart,
    regions: list[LevelPositives] | None,
    required: RequiredOutputs,
) -> DetectorOutputs:
    """What the losses read of the teacher's maps; a cache gives no features that none reads."""
    outputs: dict[str, Any] = {"features": maps.get("features", {})}
    logits, boxes = maps.get("dense_logits"), maps.get("box_maps")
    if logits is not None:
        outputs["cls_statistics"] = statistics.get("dense_logits", {})
        outputs["dense_logits"] = logits
        if "logits" in required.requires and regions is not None:
            outputs["logits"] = gather(regions, logits)
    if boxes is not None:
        outputs["box_statistics"] = statistics.get("box_maps", {})
        if regions is not None:
            outputs.update(box_outputs(gather(regions, boxes)))
            outputs.update(dense_boxes(regions, boxes, required))
    return DetectorOutputs(**outputs)


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
