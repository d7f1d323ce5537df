# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The records in which a student, a teacher and the losses meet.

Shape shorthand in this file:
    N: images in the batch; B: ground-truth boxes of all images together
    R: regions (the student's positives) of all images together
    K: foreground classes; C, H, W: channels, height and width of a feature level
    A: anchors per location; E: bins per box edge
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["BoxCoder", "DetectorOutputs", "DistillStep", "MaskInput"]


class MaskInput(NamedTuple):
    """What a mask of one level may look at.

    Attributes:
        size: N, H, W of the level.
        stride: pixels of the padded image per cell of this level.
        strides: those of all levels that the loss compares, ascending.
        boxes: (B, 4) ground truth, xyxy in pixels of the padded image.
        image_index: (B,) int64, the image of each box.
        teacher_logits: (N, A * K, H, W) of this level, detached; None if nobody requires them.
    """

    size: tuple[int, int, int]
    stride: int
    strides: tuple[int, ...]
    boxes: Tensor
    image_index: Tensor
    teacher_logits: Tensor | None


class BoxCoder(Protocol):
    """How one detector encodes boxes: the only thing a loss needs to know about its box head."""

    def decode(self, deltas: Tensor, regions: Tensor) -> Tensor:
        """Deltas (R, 4) on regions (R, 4) to boxes (R, 4) in pixels of the padded image."""

    def loss(self, deltas: Tensor, target_deltas: Tensor, regions: Tensor) -> Tensor:
        """The detector's own box loss between two sets of deltas, (R,) summed over coordinates."""


@dataclass(frozen=True)
class DetectorOutputs:
    """What one detector answered for one batch; a field nobody asked for is empty.

    Attributes:
        features: level name -> (N, C, H, W).
        dense_logits: level name -> (N, A * K, H, W): class logits of a dense head,
            objectness logits (K = 1) of an RPN.
        logits: (R, K) for sigmoid heads, (R, K + 1) for softmax heads.
        deltas: (R, 4), of the region's class where the head is class-specific.
        box_bins: (R, 4, E) logits of the box-edge distributions (GFL only).
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    dense_logits: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    deltas: Tensor | None = None
    box_bins: Tensor | None = None


@dataclass(frozen=True)
class DistillStep:
    """One batch as both detectors saw it. Row i of student and teacher is the same region.

    Attributes:
        student: attached to the graph.
        teacher: detached.
        num_images: N, also of images without boxes.
        strides: level name -> pixels of the padded image per feature cell.
        gt_boxes: (B, 4) in pixels of the padded image; gt_image: (B,) index of their image.
        regions: (R, 4) the student's positive regions (proposals, anchors or points' boxes).
        labels: (R,) ground-truth class of each region, 0..K-1.
        region_gt_boxes: (R, 4) ground-truth box matched to each region.
        activation: "softmax" or "sigmoid", of ``logits``.
        box_coder: the student's box encoding and box loss, which the teacher shares.
    """

    student: DetectorOutputs
    teacher: DetectorOutputs
    num_images: int
    strides: dict[str, int]
    gt_boxes: Tensor
    gt_image: Tensor
    regions: Tensor
    labels: Tensor
    region_gt_boxes: Tensor
    activation: str
    box_coder: BoxCoder

    def __post_init__(self) -> None:
        rows = {
            f"{who}.{name}": len(value)
            for who in ("student", "teacher")
            for name in ("logits", "deltas", "box_bins")
            if (value := getattr(getattr(self, who), name)) is not None
        }
        rows.update(labels=len(self.labels), region_gt_boxes=len(self.region_gt_boxes))
        wrong = {name: n for name, n in rows.items() if n != len(self.regions)}
        if wrong:
            raise ValueError(
                f"student and teacher must answer for the same {len(self.regions)} regions, "
                f"but these hold another number of rows: {wrong}"
            )

    def mask_input(self, level: str, size: torch.Size, levels: Iterable[str]) -> MaskInput:
        """What a mask of ``level`` may look at.

        Args:
            size: the (N, C, H, W) that the mask must cover.
            levels: all that the loss compares.
        """
        return MaskInput(
            size=(size[0], size[-2], size[-1]),
            stride=self.strides[level],
            strides=tuple(sorted(self.strides[name] for name in levels)),
            boxes=self.gt_boxes,
            image_index=self.gt_image,
            teacher_logits=self.teacher.dense_logits.get(level),
        )
