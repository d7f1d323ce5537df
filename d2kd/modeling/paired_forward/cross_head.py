# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Cross-head predictions: the student's head features through the teacher's last layers.

CrossKD (Wang et al., CVPR 2024, arXiv 2306.11369): the student's features in the middle of a branch
of its head take on the teacher's mean and deviation, channel by channel, and go through the
remaining layers of the frozen teacher's branch. What comes out is compared with the teacher's own
predictions, so the losses reach the student's backbone and first layers alone.

As in the released code, features are taken after the norm of a convolution and before its
activation; the gradient passes through the student's statistics. The variance has 1e-8 added here,
the released code adds 1e-6 to the deviation.

It works for heads with RetinaNetHead's layers: ``cls_subnet``, ``cls_score``, ``bbox_subnet`` and
what :func:`box_maps` and :func:`other_maps` know. Register a head of your own with these two.

Shape shorthand in this file:
    N: images; A: anchors per location; C, H, W: channels, height and width of a level
    D: values per anchor: 4 deltas, or 4 * E, E bins for each of them
"""

from functools import singledispatch
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor, nn

from ...losses.helpers import full_precision, no_autocast
from ...structures import DetectorOutputs
from ...utils.errors import PairMismatchError
from ..meta_arch.fcos_head import ScaledFCOSHead
from ..meta_arch.gfl.head import GFLHead
from ..teacher import FrozenTeacher

__all__ = [
    "HeldFeatures",
    "box_maps",
    "cross_predictions",
    "other_maps",
    "run_student_head",
    "teacher_box_branch",
    "teacher_class_branch",
]


class HeldFeatures(NamedTuple):
    """What the student's branches held where the teacher's layers take over, (N, C, H, W) each.

    Attributes:
        cls, box: of each level, attached to the graph.
    """

    cls: list[Tensor]
    box: list[Tensor]


@singledispatch
def box_maps(head: nn.Module, branch: list[Tensor]) -> list[Tensor]:
    """The head's box predictions (N, A * D, H, W) from its box branch's last features."""
    raise TypeError(
        f"DISTILL.CROSS_HEAD does not know the layers of {type(head).__name__}: set it to 0, or "
        "register the head with d2kd.modeling.paired_forward.cross_head.box_maps"
    )


@box_maps.register
def _(head: RetinaNetHead, branch: list[Tensor]) -> list[Tensor]:
    return [head.bbox_pred(x) for x in branch]


@box_maps.register
def _(head: GFLHead, branch: list[Tensor]) -> list[Tensor]:
    return head.predict_bins(branch)


@box_maps.register
def _(head: ScaledFCOSHead, branch: list[Tensor]) -> list[Tensor]:
    return head.predict_boxes(branch)


@singledispatch
def other_maps(head: nn.Module, branch: list[Tensor]) -> tuple[list[Tensor], ...]:
    """What else the head predicts from its box branch's last features, for its own losses."""
    return ()


@other_maps.register
def _(head: FCOSHead, branch: list[Tensor]) -> tuple[list[Tensor], ...]:
    return ([head.ctrness(x) for x in branch],)


@other_maps.register
def _(head: ScaledFCOSHead, branch: list[Tensor]) -> tuple[list[Tensor], ...]:
    if head.centerness_branch == "cls":
        raise PairMismatchError(
            "DISTILL.CROSS_HEAD needs centerness on the student's box branch: set "
            "MODEL.FCOS.CENTERNESS_BRANCH to 'box'"
        )
    return ([head.ctrness(x) for x in branch],)


def run_student_head(
    head: nn.Module, features: list[Tensor], num_convs: int
) -> tuple[tuple[list[Tensor], ...], HeldFeatures]:
    """The head's forward in its own layers, so that each runs once.

    Args:
        features: (N, C, H, W) of each level.
        num_convs: DISTILL.CROSS_HEAD, the last convolutions, before which features are held.

    Returns:
        What ``head(features)`` gives, and the held features; none with ``num_convs`` 0.
    """
    if not num_convs:
        return head(features), HeldFeatures([], [])
    held_cls, cls = _run_branch(head.cls_subnet, features, num_convs)
    held_box, box = _run_branch(head.bbox_subnet, features, num_convs)
    predictions = ([head.cls_score(x) for x in cls], box_maps(head, box), *other_maps(head, box))
    return predictions, HeldFeatures(held_cls, held_box)


def teacher_class_branch(
    teacher: FrozenTeacher, features: list[Tensor], num_convs: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The teacher's class logits (N, A * K, H, W) and the held features' statistics (2, C)."""
    head = teacher.model.head
    with teacher.computing():
        held, branch = _run_branch(head.cls_subnet, features, num_convs)
        logits = [head.cls_score(x) for x in branch]
    return teacher.as_float32(logits), [_channel_statistics(x) for x in held]


def teacher_box_branch(
    teacher: FrozenTeacher, features: list[Tensor], num_convs: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The teacher's box predictions (N, A * D, H, W) and the held features' statistics (2, C)."""
    head = teacher.model.head
    with teacher.computing():
        held, branch = _run_branch(head.bbox_subnet, features, num_convs)
        boxes = box_maps(head, branch)
    return teacher.as_float32(boxes), [_channel_statistics(x) for x in held]


def cross_predictions(
    teacher: FrozenTeacher,
    held: HeldFeatures,
    theirs: DetectorOutputs,
    own: tuple[list[Tensor], ...],
    num_convs: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """The held features through the teacher's last layers, in the student's precision.

    Gradients pass through these layers, whose weights are frozen.

    Args:
        theirs: the teacher's outputs, with the statistics of those branches that a loss reads; none
            with ``num_convs`` 0.
        own: the student's own predictions, which stay where there are no statistics.

    Returns:
        Logits (N, A * K, H, W) and boxes (N, A * D, H, W) of each level.
    """
    head = teacher.model.head
    logits, boxes = own[:2]
    if theirs.cls_statistics:
        aligned = [_align(*pair) for pair in zip(held.cls, theirs.cls_statistics.values())]
        rest = _split(head.cls_subnet, num_convs)[1]
        logits = [head.cls_score(rest(x)) for x in aligned]
    if theirs.box_statistics:
        aligned = [_align(*pair) for pair in zip(held.box, theirs.box_statistics.values())]
        rest = _split(head.bbox_subnet, num_convs)[1]
        boxes = box_maps(head, [rest(x) for x in aligned])
    return logits, boxes


def _run_branch(
    subnet: nn.Sequential, features: list[Tensor], num_convs: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The features before the last ``num_convs`` convolutions, and after all; of each level.

    A part runs on all levels before the next one does: BatchNorm's statistics are a level's own,
    and Detectron2 tells the levels apart by the order of the calls.
    """
    first, rest = _split(subnet, num_convs)
    held = [first(x) for x in features]
    return held, [rest(x) for x in held]


def _split(subnet: nn.Sequential, num_convs: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Split before the activation that precedes the last ``num_convs`` convolutions."""
    convs = [i for i, layer in enumerate(subnet) if isinstance(layer, nn.Conv2d)]
    start = max(convs[-num_convs] - 1, 0)
    return subnet[:start], subnet[start:]


@torch.no_grad()
def _channel_statistics(x: Tensor) -> Tensor:
    """(2, C) float32 mean and deviation of each channel of (N, C, H, W)."""
    variance, mean = torch.var_mean(full_precision(x), dim=(0, 2, 3), correction=0)
    return torch.stack([mean, variance.sqrt()])


def _align(student: Tensor, statistics: Tensor) -> Tensor:
    """Features (N, C, H, W) with this mean and deviation (2, C) of each channel, in float32."""
    mean, deviation = statistics
    with no_autocast(student):
        student = full_precision(student)
        if student[:, 0].numel() == 1:  # one cell has no deviation, and batch_norm refuses it
            return student * 0 + mean[:, None, None]
        return F.batch_norm(student, None, None, deviation, mean, training=True, eps=1e-8)
