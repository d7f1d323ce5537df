# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Detectron2's architectures as options of the networks in helpers.py, and a batch for all."""

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints

from tests.common.helpers import LEVELS, make_batch

_ONE_LEVEL = [
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[8, 16, 32, 48]]),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 4),
]
_SEGMENTS = [
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", LEVELS[:4], "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
]


def _on(level):
    keys = ("MODEL.RESNETS.OUT_FEATURES", "MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES")
    return [*_ONE_LEVEL, *(part for key in keys for part in (key, [level]))]


# With box heads that both detectors can share: all three losses.
WITH_BOXES = {
    "standard": [],
    "cascade": [
        *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ],
    "c4": [*_on("res4"), "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"],
    "dc5": [*_on("res5"), "MODEL.RESNETS.RES5_DILATION", 2],
    "panoptic": ["MODEL.META_ARCHITECTURE", "PanopticFPN", *_SEGMENTS],
    "mask": ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 4]
    + ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"],
    "keypoint": ["MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2]
    + ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (16,)],
    "fast": ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"],
    "moving": ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True],
}
WITH_BOXES["cascade mask"] = [*WITH_BOXES["cascade"], *WITH_BOXES["mask"]]
WITHOUT_BOXES = {
    "rpn": ["MODEL.META_ARCHITECTURE", "ProposalNetwork"],
    "semantic": ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", *_SEGMENTS],
}
ARCHITECTURES = {**WITH_BOXES, **WITHOUT_BOXES}


def whole_batch():
    """``make_batch`` with masks, keypoints, proposals and maps of classes."""
    generator = torch.Generator().manual_seed(4)
    batch = make_batch()
    for x in batch:
        truth, (height, width) = x["instances"], x["image"].shape[-2:]
        masks = np.zeros((len(truth), height, width), dtype=bool)
        points = torch.full((len(truth), 2, 3), 2.0)
        for i, (x0, y0, x1, y1) in enumerate(truth.gt_boxes.tensor.int().tolist()):
            masks[i, y0:y1, x0:x1] = True
            points[i, :, :2] = torch.tensor([[x0 + 3, y0 + 3], [x1 - 3, y1 - 3]])
        truth.gt_masks = BitMasks(torch.from_numpy(masks))
        truth.gt_keypoints = Keypoints(points)
        x["sem_seg"] = torch.randint(0, 3, (height, width), generator=generator)
        shifted = truth.gt_boxes.tensor + torch.rand(len(truth), 4, generator=generator)
        away = torch.tensor([[2.0, 2, 12, 12], [30, 5, 44, 20]])
        x["proposals"] = Instances(
            (height, width),
            proposal_boxes=Boxes(torch.cat([shifted, away])),
            objectness_logits=torch.zeros(len(shifted) + 2),
        )
    return batch


def check_gradients(ours, stock):
    """Two detectors' gradients are equal but for the order in which the CPU adds.

    Plain Detectron2's own differ so from run to run: where tensors lie in memory decides.
    """
    for (name, a), b in zip(ours.named_parameters(), stock.parameters()):
        if b.grad is None:
            assert a.grad is None or not a.grad.any(), name
        else:
            assert (a.grad - b.grad).norm() <= 1e-5 * b.grad.norm(), name
