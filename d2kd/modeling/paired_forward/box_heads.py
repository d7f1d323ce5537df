# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What the box heads of a two-stage teacher predict on given regions, a function per class.

Register ROI heads that predict boxes in a way of their own with :func:`box_predictions`.

Shape shorthand in this file:
    R: regions of all images together; K: foreground classes
"""

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..teacher import FrozenTeacher
from .box_coders import DeltaBoxCoder

__all__ = [
    "BoxPredictions",
    "Regions",
    "box_predictions",
    "can_predict",
    "deltas_of_regions",
    "first_predictor",
    "pooler_of",
]

# The methods in which ROI heads predict boxes: a class with another one is not one of these.
_KNOWN_WAYS = {
    "_forward_box": (
        StandardROIHeads._forward_box,
        CascadeROIHeads._forward_box,
    ),
    "_shared_roi_transform": (Res5ROIHeads._shared_roi_transform,),
}


class Regions(NamedTuple):
    """Boxes on which the teacher's box heads run.

    Attributes:
        boxes: of each image, R in all.
        labels: (R,) class of each box, 0..K-1, whose deltas are taken.
        image_sizes: height and width of each image before padding.
        box_coder: the student's, in which the deltas are to be given.
    """

    boxes: list[Boxes]
    labels: Tensor
    image_sizes: list[tuple[int, int]]
    box_coder: DeltaBoxCoder


class BoxPredictions(NamedTuple):
    """What box heads predict on regions.

    Attributes:
        logits: (R, K + 1), of a softmax.
        deltas: (R, 4 or 4 * K) of the boxes in ``sources``.
        sources: (R, 4) in pixels of the padded image.
        on_regions: the sources are the regions, not what an earlier stage made of them.
        box2box_transform: by which the deltas are to be read.
    """

    logits: Tensor
    deltas: Tensor
    sources: Tensor
    on_regions: bool
    box2box_transform: Any


@singledispatch
def box_predictions(
    heads: nn.Module, teacher: FrozenTeacher, features: dict[str, Tensor], regions: Regions
) -> BoxPredictions:
    """Run the box heads on regions, without gradients and in the teacher's precision.

    Args:
        heads: ``teacher.model.roi_heads``.
        features: of the teacher's backbone.
    """
    raise TypeError(f"{type(heads).__name__} is not registered with box_predictions")


@box_predictions.register
def _(
    heads: StandardROIHeads, teacher: FrozenTeacher, features: dict[str, Tensor], regions: Regions
) -> BoxPredictions:
    # Not in half precision, in which the pooler would round the boxes' corners as well.
    pooled = heads.box_pooler([features[f] for f in heads.box_in_features], regions.boxes)
    return _predict(teacher, heads.box_predictor, heads.box_head, pooled, regions.boxes, regions)


@box_predictions.register
def _(
    heads: Res5ROIHeads, teacher: FrozenTeacher, features: dict[str, Tensor], regions: Regions
) -> BoxPredictions:
    pooled = heads.pooler([features[f] for f in heads.in_features], regions.boxes)

    def head(x: Tensor) -> Tensor:
        return heads.res5(x).mean(dim=[2, 3])

    return _predict(teacher, heads.box_predictor, head, pooled, regions.boxes, regions)


@box_predictions.register
def _(
    heads: CascadeROIHeads, teacher: FrozenTeacher, features: dict[str, Tensor], regions: Regions
) -> BoxPredictions:
    """All stages (arXiv 1712.00726): the mean of their probabilities, the last one's boxes."""
    maps, boxes = [features[f] for f in heads.box_in_features], regions.boxes
    stages: list[BoxPredictions] = []
    for head, predictor in zip(heads.box_head, heads.box_predictor):
        if stages:
            boxes = _next_boxes(stages[-1], regions)
        pooled = heads.box_pooler(maps, boxes)
        stages.append(_predict(teacher, predictor, head, pooled, boxes, regions))
    logs = torch.stack([x.logits.float().log_softmax(dim=1) for x in stages])
    # The softmax of the mean's logarithm is the mean.
    return stages[-1]._replace(logits=logs.logsumexp(dim=0) - math.log(len(stages)))


def _predict(
    teacher: FrozenTeacher,
    predictor: nn.Module,
    head: Callable[[Tensor], Tensor],
    pooled: Tensor,
    boxes: list[Boxes],
    regions: Regions,
) -> BoxPredictions:
    """Head and predictor on what was pooled at these boxes."""
    with teacher.computing():
        predictions = predictor(head(pooled))
    logits, deltas = teacher.as_float32(predictions)
    on_regions, sources = boxes is regions.boxes, Boxes.cat(boxes).tensor
    return BoxPredictions(logits, deltas, sources, on_regions, predictor.box2box_transform)


def _next_boxes(found: BoxPredictions, regions: Regions) -> list[Boxes]:
    """A stage's boxes, clipped to their image as Detectron2 does, each in its region's place."""
    boxes = found.box2box_transform.apply_deltas(found.deltas, found.sources)
    split = [Boxes(x) for x in boxes.split([len(x) for x in regions.boxes])]
    for boxes_i, size in zip(split, regions.image_sizes):
        boxes_i.clip(size)
    return split


def deltas_of_regions(found: BoxPredictions, regions: Regions) -> Tensor:
    """The predicted boxes as deltas (R, 4) of the regions, by the student's box transform."""
    deltas, coder = of_class(found.deltas, regions.labels), regions.box_coder
    anchors = Boxes.cat(regions.boxes).tensor
    if found.on_regions and coder.encodes_like(found.box2box_transform):
        return deltas
    return coder.encode(found.box2box_transform.apply_deltas(deltas, found.sources), anchors)


def of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """(R, 4) of each region's class from class-specific (R, 4 * K) or class-agnostic (R, 4)."""
    if deltas.shape[1] == 4:
        return deltas
    rows = torch.arange(len(labels), device=labels.device)
    return deltas.unflatten(1, (-1, 4))[rows, labels]


def can_predict(heads: nn.Module) -> bool:
    """Whether ``box_predictions`` knows how these ROI heads predict boxes.

    It does not where a subclass has a method of its own for that, until the class is registered.
    """
    function = box_predictions.dispatch(type(heads))
    if function is box_predictions.dispatch(object):
        return False
    stock = {box_predictions.dispatch(x) for x in (StandardROIHeads, CascadeROIHeads, Res5ROIHeads)}
    return function not in stock or all(
        getattr(type(heads), name, known[0]) in known for name, known in _KNOWN_WAYS.items()
    )


def first_predictor(heads: nn.Module) -> tuple[nn.Module, str]:
    """The owner and the name of the box predictor that sees the sampled proposals."""
    if isinstance(heads.box_predictor, nn.ModuleList):
        return heads.box_predictor, "0"
    return heads, "box_predictor"


def pooler_of(heads: nn.Module) -> nn.Module:
    """The pooler of the box heads, which the benchmark listens to."""
    return heads.pooler if isinstance(heads, Res5ROIHeads) else heads.box_pooler
