# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Keys of FCOS, which Detectron2 has only for LazyConfig."""

from detectron2.config import CfgNode as CN

__all__ = ["add_fcos_config"]


def add_fcos_config(cfg: CN) -> None:
    """Declare ``MODEL.FCOS``, with the values of Detectron2's ``fcos_R_50_FPN_1x.py``.

    The names are those of ``MODEL.RETINANET`` wherever the meaning is the same. Detections per
    image, pixel statistics and the backbone have their keys elsewhere (``TEST``, ``MODEL``).
    """
    _C = cfg.MODEL.FCOS = CN()

    # Foreground classes.
    _C.NUM_CLASSES = 80
    # Backbone levels the head reads, by ascending stride.
    _C.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # 3x3 convolutions before the predictions, in the class and in the box branch each.
    _C.NUM_CONVS = 4
    # Norm of these convolutions: "" or any name of detectron2.layers.get_norm. "GN" needs FPN
    # channels that 32 divides; "BN" and "SyncBN" have separate statistics for each level.
    _C.NORM = "GN"
    # Class probability that the head predicts everywhere before training.
    _C.PRIOR_PROB = 0.01

    # How the head gives an edge's distance. "linear": in strides, as Detectron2 does. "scaled": the
    # same times a learnt scale of the level. "exp": the exponential of the scaled prediction, in
    # pixels, as the paper and mmdetection's zoo do.
    _C.BOX_PREDICTION = "linear"
    # The branch that centerness is predicted from: "box", or "cls" as in the paper. "linear" has it
    # on "box".
    _C.CENTERNESS_BRANCH = "box"

    # A point is positive within this distance of a ground truth's centre, in strides per axis.
    _C.CENTER_SAMPLING_RADIUS = 1.5
    # Focal loss (arXiv 1708.02002): weight of the positives, and the focusing exponent.
    _C.FOCAL_LOSS_ALPHA = 0.25
    _C.FOCAL_LOSS_GAMMA = 2.0

    # Detections below this score are dropped; the score is sqrt(class * centerness).
    _C.SCORE_THRESH_TEST = 0.2
    # Best detections of each level that enter the suppression.
    _C.TOPK_CANDIDATES_TEST = 1000
    # IoU above which the weaker of two detections of a class is suppressed.
    _C.NMS_THRESH_TEST = 0.6
