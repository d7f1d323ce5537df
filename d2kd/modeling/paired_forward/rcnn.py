# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The paired forward of detectors with proposals: GeneralizedRCNN and all that extend it.

Shape shorthand in this file:
    N: images; A: anchors per location; H, W: size of a feature level
    R: regions = the student's positive proposals of all images; K: foreground classes
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ...structures import DetectorOutputs, DistillStep
from ..teacher import FrozenTeacher
from .box_coders import box_coder_of
from .box_heads import Regions, first_predictor, of_class
from .features import describe_batch, no_regions
from .rcnn_teacher import teacher_outputs, teacher_parts, teacher_proposals
from .recorders import (
    BackboneRecorder,
    BoxLossRecorder,
    Recorder,
    RPNHeadRecorder,
    in_place_of,
)
from .registry import PAIR_FORWARD_REGISTRY, RequiredOutputs

__all__ = ["Regions", "forward_pair_rcnn", "teacher_outputs", "teacher_parts", "teacher_proposals"]


@PAIR_FORWARD_REGISTRY.register()
def forward_pair_rcnn(
    student: nn.Module, teacher: FrozenTeacher, batch: list[dict], required: RequiredOutputs
) -> tuple[dict[str, Tensor], DistillStep]:
    """Run the student's own training forward once, and the teacher on the student's positives.

    Parts of either detector that no loss reads are not looked at.

    Args:
        student: GeneralizedRCNN, ProposalNetwork or a class that extends them, in training mode.
        teacher: with the heads that are read; else of any class.
        batch: what the data loader gave, with "instances".
        required: what the losses need, and whose proposals are sampled.

    Returns:
        dict of the student's own losses; DistillStep.
    """
    run = _StudentRun(student, teacher, batch, required)
    if run.union is None:
        maps = teacher.maps(batch, run.images, *teacher_parts(teacher, required))
        teacher_features, teacher_dense = maps["features"], maps.get("dense_logits")
    else:
        teacher_features, teacher_dense = run.union.features, run.union.dense_logits
    regions, fields = None, no_regions(run.images.tensor)
    predictions: dict[str, Tensor] = {}
    if run.predictor is not None:
        regions, predictions, fields = _describe_positives(student.roi_heads, run.predictor)
    step = DistillStep(
        student=DetectorOutputs(run.backbone.features(), run.dense_logits, **predictions),
        teacher=teacher_outputs(teacher, teacher_features, regions, required, teacher_dense),
        **describe_batch(student, batch, run.images.tensor),
        **fields,
    )
    return run.losses, step


class _StudentRun:
    """One training forward of the student, and what passed through the parts that losses read.

    Attributes:
        losses: the student's own.
        images: as the student prepared them.
        backbone: its recorder.
        union: of the proposals, with DISTILL.PROPOSALS "union"; else None.
        predictor: of the box predictor, if a loss reads its predictions; else None.
        dense_logits: level -> (N, A, H, W) of the RPN, if a loss reads them.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: FrozenTeacher,
        batch: list[dict],
        required: RequiredOutputs,
    ):
        self.backbone = BackboneRecorder(student.backbone)
        self.union = self.predictor = None
        rpn = rpn_head = None
        places: list[tuple[nn.Module, str, Recorder]] = [(student, "backbone", self.backbone)]
        if "dense_logits" in required.requires:
            rpn = student.proposal_generator
            rpn_head = RPNHeadRecorder(rpn.rpn_head)
            places.append((rpn, "rpn_head", rpn_head))
        if required.proposals == "union":
            self.union = _UnionRecorder(student.proposal_generator, teacher, batch)
            places.append((student, "proposal_generator", self.union))
        if required.requires & {"logits", "deltas"}:
            owner, name = first_predictor(student.roi_heads)
            self.predictor = BoxLossRecorder(getattr(owner, name))
            places.append((owner, name, self.predictor))
        with ExitStack() as stack:
            for place in places:
                stack.enter_context(in_place_of(*place))
            self.losses = student(batch)
        self.images = self.backbone.images(batch)
        self.dense_logits = dict(zip(rpn.in_features, rpn_head.logits())) if rpn else {}


class _UnionRecorder(Recorder):
    """Stands in for the student's RPN, and adds the teacher's proposals to its own.

    Attributes:
        features, dense_logits: of the teacher, which come with its proposals.
    """

    def __init__(self, part: nn.Module, teacher: FrozenTeacher, batch: list[dict]):
        super().__init__(part)
        self.features: dict[str, Tensor] = {}
        self.dense_logits: dict[str, Tensor] = {}
        # In functions: as a module, the teacher would be a part of the student.
        self._run_backbone: Callable = lambda images: teacher.features(batch, images)
        self._propose: Callable = lambda *given: teacher_proposals(teacher, *given)

    def forward(self, images: ImageList, *inputs: Any, **named: Any) -> Any:
        proposals, losses = super().forward(images, *inputs, **named)
        self.features = self._run_backbone(images)
        theirs, self.dense_logits = self._propose(self.features, images.image_sizes)
        return [_union(*pair) for pair in zip(proposals, theirs)], losses


def _union(ours: Instances, theirs: Instances) -> Instances:
    """The student's and the teacher's proposals of one image, to be sampled from together."""
    return Instances.cat([ours, Instances(ours.image_size, **theirs.get_fields())])


def _describe_positives(
    roi_heads: nn.Module, predictor: BoxLossRecorder
) -> tuple[Regions, dict[str, Tensor], dict[str, Any]]:
    """The regions; the student's logits (R, K + 1) and deltas (R, 4); the step's other fields."""
    positives = [_positives(p, roi_heads.num_classes) for p in predictor.proposals()]
    labels = torch.cat([p.gt_classes for p in positives])
    boxes, sizes = [p.proposal_boxes for p in positives], [p.image_size for p in positives]
    coder = box_coder_of(predictor.part)
    predictions = {
        "logits": torch.cat([p.logits for p in positives]),
        "deltas": of_class(torch.cat([p.deltas for p in positives]), labels),
    }
    fields = {
        "regions": Boxes.cat(boxes).tensor,
        "labels": labels,
        "region_gt_boxes": Boxes.cat([_matched_boxes(p) for p in positives]).tensor,
        "activation": "softmax",
        "box_coder": coder,
        # Filled on the device: a list copied there would be waited for.
        "region_image": torch.cat(
            [torch.full_like(p.gt_classes, i) for i, p in enumerate(positives)]
        ),
    }
    return Regions(boxes, labels, sizes, coder), predictions, fields


def _positives(proposals: Instances, num_classes: int) -> Instances:
    """The sampled proposals of one image that a ground-truth box was matched to."""
    labels = proposals.gt_classes
    return proposals[((labels >= 0) & (labels < num_classes)).nonzero().squeeze(1)]


def _matched_boxes(positives: Instances) -> Boxes:
    """Detectron2 sets no gt_boxes in an image without ground truth, which has no positives."""
    return positives.gt_boxes if positives.has("gt_boxes") else positives.proposal_boxes
