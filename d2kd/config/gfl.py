# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Every MODEL.GFL key, declared once."""

from detectron2.config import CfgNode as CN

__all__ = ["add_gfl_config"]


def add_gfl_config(cfg: CN) -> None:
    """Add MODEL.GFL, the keys of ``MODEL.META_ARCHITECTURE: GFL`` (needs ``import d2kd``).

    Values are those of the paper (arXiv 2006.04388) and of both releases, the authors' GFocal and
    mmdetection, unless said otherwise.
    """
    _C = cfg.MODEL.GFL = CN()

    # Foreground classes.
    _C.NUM_CLASSES = 80
    # Backbone levels that the head reads, finest first.
    _C.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]

    # Convolutions before the last one, in each of the two branches.
    _C.NUM_CONVS = 4
    # Normalisation of those convolutions: "GN" (32 groups, fewer in heads of less than 256
    # channels, so that a group has 8), "BN" or "SyncBN" (statistics for each level), or "" (none).
    _C.NORM = "GN"
    # Class probability that the last bias starts from.
    _C.PRIOR_PROB = 0.01
    # Farthest distance from an anchor's centre to an edge of its box, in strides of the level;
    # an edge has REG_MAX + 1 bins.
    _C.REG_MAX = 16

    # Side of the square anchors in strides, which matters for the assignment only. Their centres
    # follow MODEL.ANCHOR_GENERATOR.OFFSET: 0, which is Detectron2's default, in mmdetection, and
    # (stride - 1) / 2 pixels in the authors' GFocal.
    _C.ANCHOR_SCALE = 8
    # ATSS (arXiv 1912.02424): candidates that each ground-truth box takes from each level.
    _C.ATSS_TOPK = 9

    # Exponent of the quality focal loss.
    _C.QFL_BETA = 2.0
    # Weights of the GIoU loss and of the distribution focal loss; the class loss has weight 1.
    _C.BBOX_REG_LOSS_WEIGHT = 2.0
    _C.DFL_LOSS_WEIGHT = 0.25

    # Lowest class score that is kept, candidates that each level gives to NMS, NMS's IoU threshold.
    _C.SCORE_THRESH_TEST = 0.05
    _C.TOPK_CANDIDATES_TEST = 1000
    _C.NMS_THRESH_TEST = 0.6
