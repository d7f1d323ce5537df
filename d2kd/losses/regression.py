# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The regression loss: the teacher's boxes as targets, on positives or at all locations.

Shape shorthand in this file:
    N: images in the batch; R: regions (positives) of all images together, or rows of anchors
    A: anchors per location; H, W: height and width of a level; E: bins per box edge
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor, nn

from ..structures import DetectorOutputs, DistillStep, LossTerms
from ..utils.errors import ConfigError, PairMismatchError
from .helpers import full_precision, no_autocast, weighted_terms
from .locations import NORMALIZERS, WEIGHTS, anchor_weights, location_divisor
from .normalizer import normalizer
from .overlaps import giou_loss, iou_loss

__all__ = [
    "DISTANCES",
    "GATES",
    "WHERE",
    "RegressionLoss",
    "accepted_regions",
    "edge_distribution_kl",
]

WHERE = ("positives", *WEIGHTS)
GATES = ("student", "proposal", "none")
_OVERLAPS = {"giou": giou_loss, "iou": iou_loss}
DISTANCES = ("box_loss", "distribution_kl", *_OVERLAPS)


@torch.no_grad()
def accepted_regions(step: DistillStep, gate: str) -> Tensor:
    """The regions on which the teacher's box is a better target.

    TAR (arXiv 2006.13108) accepts a region by an IoU criterion: the teacher's box must be closer
    to the ground truth, than what is not published. The only digest that says it compares with
    the proposal ("proposal"); the abstract's wording suggests the student's box ("student").

    Args:
        gate: "student", "proposal" or "none".

    Returns:
        (R,) float32, 1 where accepted; "none" accepts every region.
    """
    regions = full_precision(step.regions)
    if gate == "none":
        return regions.new_ones(len(regions))
    rival = regions
    if gate == "student":
        rival = step.box_coder.decode(full_precision(step.student.deltas), regions)
    teacher = step.box_coder.decode(full_precision(step.teacher.deltas), regions)
    truth = Boxes(full_precision(step.region_gt_boxes))
    teacher_iou = matched_pairwise_iou(Boxes(teacher), truth)
    return (teacher_iou > matched_pairwise_iou(Boxes(rival), truth)).to(regions.dtype)


def edge_distribution_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the box-edge distributions, teacher first.

    LD (Zheng et al., arXiv 2102.12252; released code): temperature^2 times the mean (not the
    sum) over bins, mean over the four edges.

    Args:
        student, teacher: (R, 4, E) logits.

    Returns:
        (R,).
    """
    log_p_student = (student / temperature).log_softmax(dim=2)
    log_p_teacher = (teacher / temperature).log_softmax(dim=2)
    kl = F.kl_div(log_p_student, log_p_teacher, reduction="none", log_target=True)
    return temperature**2 * kl.mean(dim=(1, 2))


class _Boxes(NamedTuple):
    """What one detector predicts on some regions, a row each.

    Attributes:
        deltas: (R, 4).
        bins: (R, 4, E), or None.
    """

    deltas: Tensor | None
    bins: Tensor | None


class RegressionLoss(nn.Module):
    """The teacher's boxes as targets, on positive regions (TAR, LD) or at all locations (BCKD).

    With ``where`` "positives" and an IoU gate a_i:
    "box_loss" (TAR): ``weight / R * sum_i a_i * box_loss(t_i^S, t_i^T)`` with the detector's own
    box loss; R counts all positives, not only the accepted ones. "giou", "iou": likewise.
    "distribution_kl" (LD): ``weight / N * sum_i a_i w_i KL_i`` over the detector's box-edge
    distributions, w the student's best class probability, detached, N images. LD's released code
    sums, with weight 0.25, over the two images of its GPUs: 2 * 0.25 here, for any batch.

    Else ``weight * sum_i w_i d_i / normalizer`` over the anchors of all levels, d any distance,
    w_i from ``anchor_weights``: BCKD (arXiv 2308.14286) is "disagreement" with "giou"; CrossKD
    (arXiv 2306.11369) is "teacher_score" with "giou" on RetinaNet, "iou" on FCOS and
    "distribution_kl" on GFL.
    """

    def __init__(
        self,
        *,
        weight: float,
        gate: str,
        distance: str,
        temperature: float,
        where: str = "positives",
        normalizer: str = "positives",
        reduce: bool = False,
    ):
        """
        Args:
            weight: factor of the whole loss.
            gate: "student", "proposal" or "none", see :func:`accepted_regions`.
            distance: "box_loss"; "giou", "iou" between decoded boxes; or "distribution_kl" for
                detectors with box-edge bins (GFL).
            temperature: of distribution_kl; LD's is 10. The others have none.
            where: "positives", or the weight of all anchors: "disagreement", "teacher_score".
            normalizer: of a loss over all anchors, see :func:`location_divisor`.
            reduce: R or the normaliser is the mean over all processes.

        Raises:
            ValueError: for an unknown name.
            ConfigError: a gate for a loss over all anchors, most of which have no ground truth.
        """
        super().__init__()
        _check_known("where", where, WHERE)
        _check_known("gate", gate, GATES)
        _check_known("distance", distance, DISTANCES)
        _check_known("normalizer", normalizer, NORMALIZERS)
        if where != "positives" and gate != "none":
            raise ConfigError(
                f"DISTILL.REG.GATE is {gate!r}: set it to 'none' where DISTILL.REG.WHERE is "
                f"{where!r}"
            )
        self.weight = weight
        self.gate = gate
        self.distance = distance
        self.temperature = temperature
        self.where = where
        self.normalizer = normalizer
        self.reduce = reduce
        boxes = "box_bins" if distance == "distribution_kl" else "deltas"
        if where == "positives":
            self.requires = frozenset({boxes} if gate == "none" else {boxes, "deltas"})
        else:
            self.requires = frozenset({f"dense_{boxes}", "dense_logits"})

    def forward(self, step: DistillStep) -> LossTerms:
        """The weighted loss of one batch, attached to the student's boxes."""
        with no_autocast(step.regions):
            if self.where != "positives":
                return self._all_anchors(step)
            if self.distance == "distribution_kl":
                return LossTerms(self.weight * self._weighted_positives(step), {})
            return LossTerms(self.weight * self._positives(step), {})

    def _positives(self, step: DistillStep) -> Tensor:
        losses = self._compare(_on_regions(step.student), _on_regions(step.teacher), step)
        count = normalizer(losses.new_full((), len(losses)), 1, self.reduce)
        return (accepted_regions(step, self.gate) * losses).sum() / count

    def _weighted_positives(self, step: DistillStep) -> Tensor:
        losses = self._compare(_on_regions(step.student), _on_regions(step.teacher), step)
        # Detectors with box-edge bins have sigmoid heads, without a background channel.
        weights = full_precision(step.student.logits.detach()).sigmoid().amax(dim=1)
        return (accepted_regions(step, self.gate) * weights * losses).sum() / step.num_images

    def _all_anchors(self, step: DistillStep) -> LossTerms:
        sums, weights = {}, []
        for level, anchors in step.anchors.items():
            ours, theirs = _on_anchors(step.student, level), _on_anchors(step.teacher, level)
            rows = anchors.boxes.expand(len(anchors.valid), -1, -1).flatten(0, 1)
            weight = anchor_weights(step, level, self.where).flatten()
            sums[level] = (weight * self._compare(ours, theirs, step, rows)).sum()
            weights.append(weight.sum())
        divisor = location_divisor(step, self.normalizer, self.reduce, sum(weights))
        return weighted_terms({level: x / divisor for level, x in sums.items()}, self.weight)

    def _compare(
        self, ours: _Boxes, theirs: _Boxes, step: DistillStep, regions: Tensor | None = None
    ) -> Tensor:
        """The distance (R,) between the boxes of both detectors on (R, 4) regions."""
        if self.distance == "distribution_kl":
            return _bins_kl(ours.bins, theirs.bins, self.temperature)
        regions = full_precision(step.regions if regions is None else regions)
        deltas = full_precision(ours.deltas), full_precision(theirs.deltas)
        if self.distance == "box_loss":
            return step.box_coder.loss(*deltas, regions)
        return _OVERLAPS[self.distance](*(step.box_coder.decode(x, regions) for x in deltas))


def _check_known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, not {value!r}")


def _on_regions(outputs: DetectorOutputs) -> _Boxes:
    return _Boxes(outputs.deltas, outputs.box_bins)


def _on_anchors(outputs: DetectorOutputs, level: str) -> _Boxes:
    """The rows of all images' anchors of a level."""
    found = [x.get(level) for x in (outputs.dense_deltas, outputs.dense_box_bins)]
    return _Boxes(*(None if x is None else x.flatten(0, 1) for x in found))


def _bins_kl(student: Tensor | None, teacher: Tensor | None, temperature: float) -> Tensor:
    if student is None or teacher is None:
        raise PairMismatchError(
            "distribution_kl needs detectors that predict box-edge distributions (GFL): "
            "set DISTILL.REG.DISTANCE to 'box_loss'"
        )
    return edge_distribution_kl(full_precision(student), full_precision(teacher), temperature)
