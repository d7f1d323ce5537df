# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The records that pass between the detectors, the losses and the trainer.

Shape shorthand in this file:
    N: images in the batch; B: ground-truth boxes of all images together
    R: regions (the student's positives) of all images together
    K: foreground classes; C, H, W: channels, height and width of a feature level
    A: anchors per location; E: bins per box edge
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = [
    "BoxCoder",
    "DetectorOutputs",
    "DistillStep",
    "LevelAnchors",
    "LossTerms",
    "MaskInput",
    "StepRecord",
]


class MaskInput(NamedTuple):
    """What a mask of one level may look at.

    Attributes:
        size: N, H, W of the level.
        stride: pixels of the padded image per cell of this level.
        strides: those of all levels that the loss compares, ascending.
        boxes: (B, 4) ground truth, xyxy in pixels of the padded image.
        image_index: (B,) int64, the image of each box.
        teacher_logits: (N, A * K, H, W) of this level, detached; None if no loss requires them.
    """

    size: tuple[int, int, int]
    stride: int
    strides: tuple[int, ...]
    boxes: Tensor
    image_index: Tensor
    teacher_logits: Tensor | None


class LevelAnchors(NamedTuple):
    """The anchors (or points as square boxes) of one level of a dense detector.

    Attributes:
        boxes: (H * W * A, 4), xyxy in pixels of the padded image; cell by cell, A in each.
        valid: (N, H * W * A) bool; False where the detector's training ignores the anchor.
    """

    boxes: Tensor
    valid: Tensor


class BoxCoder(Protocol):
    """How one detector encodes boxes, which is all that a loss needs of its box head."""

    def decode(self, deltas: Tensor, regions: Tensor) -> Tensor:
        """Deltas (R, 4) on regions (R, 4) to boxes (R, 4) in pixels of the padded image."""

    def loss(self, deltas: Tensor, target_deltas: Tensor, regions: Tensor) -> Tensor:
        """The detector's own box loss between two sets of deltas, (R,) summed over coordinates."""


@dataclass(frozen=True)
class DetectorOutputs:
    """What one detector computed for one batch; fields that no loss requires are empty.

    Attributes:
        features: level name -> (N, C, H, W).
        dense_logits: level name -> (N, A * K, H, W): class logits of a dense head,
            objectness logits (K = 1) of an RPN.
        logits: (R, K) for sigmoid heads, (R, K + 1) for softmax heads.
        deltas: (R, 4), of the region's class where the head is class-specific.
        box_bins: (R, 4, E) logits of the box-edge distributions (GFL only).
        dense_deltas: level name -> (N, H * W * A, 4), in the order of the level's anchors.
        dense_box_bins: level name -> (N, H * W * A, 4, E), likewise (GFL only).
        cls_statistics, box_statistics: level name -> (2, C) mean and deviation of the features in a
            branch of the teacher's head where the student's enter it (DISTILL.CROSS_HEAD).
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    dense_logits: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    deltas: Tensor | None = None
    box_bins: Tensor | None = None
    dense_deltas: dict[str, Tensor] = field(default_factory=dict)
    dense_box_bins: dict[str, Tensor] = field(default_factory=dict)
    cls_statistics: dict[str, Tensor] = field(default_factory=dict)
    box_statistics: dict[str, Tensor] = field(default_factory=dict)

    def per_region(self) -> dict[str, Tensor]:
        """The fields that are there and have one row for each region."""
        fields = {"logits": self.logits, "deltas": self.deltas, "box_bins": self.box_bins}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class DistillStep:
    """One batch as both detectors saw it. Row i of student and teacher is the same region.

    Attributes:
        student: attached to the graph. With DISTILL.CROSS_HEAD, the predictions of those branches
            of the head that a loss reads are the cross-head predictions.
        teacher: detached.
        num_images: N, also of images without boxes.
        strides: level name -> pixels of the padded image per feature cell.
        gt_boxes: (B, 4) in pixels of the padded image; gt_image: (B,) index of their image.
        regions: (R, 4) the student's positive regions (proposals, anchors or points' boxes).
        labels: (R,) ground-truth class of each region, 0..K-1.
        region_gt_boxes: (R, 4) ground-truth box matched to each region.
        activation: "softmax" or "sigmoid", of ``logits``; "" where no loss reads a region.
        box_coder: the student's box encoding and box loss, in which the teacher's deltas are given;
            None where no loss reads a region.
        anchors: level name -> LevelAnchors of a dense head; empty for two-stage detectors.
        region_image: (R,) int64, the image of each region; None where nobody says.
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
    anchors: dict[str, LevelAnchors] = field(default_factory=dict)
    region_image: Tensor | None = None

    def __post_init__(self) -> None:
        rows = {
            f"{who}.{name}": len(value)
            for who, outputs in (("student", self.student), ("teacher", self.teacher))
            for name, value in outputs.per_region().items()
        }
        rows.update(labels=len(self.labels), region_gt_boxes=len(self.region_gt_boxes))
        if self.region_image is not None:
            rows["region_image"] = len(self.region_image)
        wrong = {name: n for name, n in rows.items() if n != len(self.regions)}
        if wrong:
            raise ValueError(
                f"student and teacher must be evaluated on the same {len(self.regions)} regions, "
                f"but these fields have another number of rows: {wrong}"
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


class LossTerms(NamedTuple):
    """One distillation loss of one batch.

    Attributes:
        total: the loss, a float32 scalar attached to the graph.
        per_level: level name -> its term of the total, detached; empty for losses on regions.
    """

    total: Tensor
    per_level: dict[str, Tensor]

    def scaled(self, factor: float | Tensor) -> "LossTerms":
        """The same times a factor, a number or a scalar tensor."""
        return LossTerms(
            factor * self.total, {name: factor * term for name, term in self.per_level.items()}
        )


@dataclass(frozen=True)
class StepRecord:
    """What one training forward saw and gave, kept to explain a loss that is not finite.

    Attributes:
        batch: what the data loader gave.
        random: the states of the random streams before the forward (``get_random_state``).
        losses: name -> detached scalar; empty if the forward failed.
        losses_per_level: distillation loss -> level -> detached scalar, of losses on levels.
    """

    batch: list[dict]
    random: dict[str, Any]
    losses: dict[str, Tensor] = field(default_factory=dict)
    losses_per_level: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def bad_levels(self) -> dict[str, list[str]]:
        """Distillation loss -> its levels whose terms are not finite."""
        return {
            name: [level for level, term in terms.items() if not term.isfinite()]
            for name, terms in self.losses_per_level.items()
        }
