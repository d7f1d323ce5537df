# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The regions of one image: the boxes of both detectors there, and which of them pass the gate.

Shape shorthand in this file:
    R: regions of the image
"""

from typing import NamedTuple

from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor, nn

from ..losses.regression import RegressionLoss, accepted_regions
from ..structures import DetectorOutputs, DistillStep

__all__ = ["RegionView", "view_regions"]

_BOXES = frozenset({"deltas", "box_bins"})


class RegionView(NamedTuple):
    """The positive regions of one image; on the CPU.

    Attributes:
        regions: (R, 4) xyxy in pixels of the image, as are all boxes.
        truth: (R, 4) the ground-truth box matched to each.
        teacher, student: (R, 4) what each detector predicts there; None if no loss reads it.
        accepted: (R,) bool, whether the regression loss counts the region; None without a gate.
        gate: "student" or "proposal"; "" without a gate.
    """

    regions: Tensor
    truth: Tensor
    teacher: Tensor | None
    student: Tensor | None
    accepted: Tensor | None
    gate: str

    def iou(self, boxes: Tensor) -> Tensor:
        """(R,) IoU of (R, 4) boxes with the ground truth of their regions."""
        return matched_pairwise_iou(Boxes(boxes), Boxes(self.truth))

    @property
    def rival(self) -> Tensor | None:
        """(R, 4) what the gate compares the teacher's box with; the student's without a gate."""
        return self.regions if self.gate == "proposal" else self.student


def view_regions(losses: nn.ModuleDict, step: DistillStep, image: int) -> RegionView | None:
    """The regions of an image of the batch, as the losses on positives see them.

    Args:
        losses: the enabled ones, by name.
        image: index in the batch.

    Returns:
        None where no loss reads a region.
    """
    read = frozenset().union(*(loss.requires for loss in losses.values()))
    if step.region_image is None or not read & {"logits", *_BOXES}:
        return None
    # A teacher may give boxes where only its classes are read.
    of_boxes = bool(read & _BOXES)
    rows = step.region_image == image
    gate = _gate(losses)
    accepted = accepted_regions(step, gate) > 0 if gate else None

    def of_image(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[rows].detach().cpu()

    return RegionView(
        regions=step.regions[rows].float().cpu(),
        truth=step.region_gt_boxes[rows].float().cpu(),
        teacher=of_image(_boxes(step, step.teacher) if of_boxes else None),
        student=of_image(_boxes(step, step.student) if of_boxes else None),
        accepted=of_image(accepted),
        gate=gate,
    )


def _gate(losses: nn.ModuleDict) -> str:
    """The gate of the regression loss; "" if every region passes."""
    for loss in losses.values():
        if isinstance(loss, RegressionLoss) and loss.gate != "none":
            return loss.gate
    return ""


def _boxes(step: DistillStep, outputs: DetectorOutputs) -> Tensor | None:
    if outputs.deltas is None or step.box_coder is None:
        return None
    return step.box_coder.decode(outputs.deltas.float(), step.regions.float())
