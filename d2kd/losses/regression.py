# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The regression loss: the teacher's boxes as targets, where they are better than the student's.

Shape shorthand in this file:
    R: regions (positives) of all images together; K: foreground classes; E: bins per box edge
"""

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor, nn

from ..structures import DistillStep, LossTerms
from ..utils.errors import PairMismatchError
from .helpers import full_precision, no_autocast
from .normalizer import normalizer

__all__ = ["DISTANCES", "GATES", "RegressionLoss", "accepted_regions", "edge_distribution_kl"]

GATES = ("student", "proposal", "none")
DISTANCES = ("box_loss", "distribution_kl")


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


class RegressionLoss(nn.Module):
    """The teacher's boxes as targets on positive regions that pass an IoU gate.

    "box_loss" (TAR): ``weight / R * sum_i a_i * box_loss(t_i^S, t_i^T)`` with the detector's own
    box loss; R counts all positives, not only the accepted ones.
    "distribution_kl" (LD): ``weight / N * sum_i a_i w_i KL_i`` over the detector's box-edge
    distributions, w the student's best class probability, detached, N images. LD's released code
    sums, with weight 0.25, over the two images of its GPUs: 2 * 0.25 here, for any batch.
    """

    def __init__(
        self, *, weight: float, gate: str, distance: str, temperature: float, reduce: bool = False
    ):
        """
        Args:
            weight: factor of the whole loss.
            gate: "student", "proposal" or "none", see :func:`accepted_regions`.
            distance: "box_loss", or "distribution_kl" for detectors with box-edge bins (GFL).
            temperature: of distribution_kl; LD's is 10. box_loss has none.
            reduce: R is the mean over all processes.

        Raises:
            ValueError: for an unknown gate or distance.
        """
        super().__init__()
        if gate not in GATES:
            raise ValueError(f"gate must be one of {GATES}, not {gate!r}")
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {DISTANCES}, not {distance!r}")
        self.weight = weight
        self.gate = gate
        self.distance = distance
        self.temperature = temperature
        self.reduce = reduce
        requires = {"box_bins"} if distance == "distribution_kl" else {"deltas"}
        self.requires = frozenset(requires if gate == "none" else requires | {"deltas"})

    def forward(self, step: DistillStep) -> LossTerms:
        """The weighted loss of one batch, attached to the student's boxes."""
        with no_autocast(step.regions):
            loss = self._box_loss if self.distance == "box_loss" else self._distribution_kl
            return LossTerms(self.weight * loss(step), {})

    def _box_loss(self, step: DistillStep) -> Tensor:
        student, teacher = step.student.deltas, step.teacher.deltas
        losses = step.box_coder.loss(
            full_precision(student), full_precision(teacher), full_precision(step.regions)
        )
        count = normalizer(losses.new_full((), len(losses)), 1, self.reduce)
        return (accepted_regions(step, self.gate) * losses).sum() / count

    def _distribution_kl(self, step: DistillStep) -> Tensor:
        student, teacher = step.student.box_bins, step.teacher.box_bins
        if student is None or teacher is None:
            raise PairMismatchError(
                "distribution_kl needs detectors that predict box-edge distributions (GFL): "
                "set DISTILL.REG.DISTANCE to 'box_loss'"
            )
        losses = edge_distribution_kl(
            full_precision(student), full_precision(teacher), self.temperature
        )
        # Detectors with box-edge bins have sigmoid heads, without a background channel.
        weights = full_precision(step.student.logits.detach()).sigmoid().amax(dim=1)
        return (accepted_regions(step, self.gate) * weights * losses).sum() / step.num_images
