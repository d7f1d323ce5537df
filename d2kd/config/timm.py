# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Every MODEL.TIMM key, declared once."""

from detectron2.config import CfgNode as CN

__all__ = ["add_timm_config", "forget_start", "is_timm"]


def add_timm_config(cfg: CN) -> None:
    """Add MODEL.TIMM, the keys of ``build_timm_fpn_backbone`` and its like (``d2kd[timm]``).

    The FPN over the network reads MODEL.FPN. MODEL.BACKBONE.FREEZE_AT freezes the network's first
    stages: 1 up to stride 2, 2 up to stride 4, and so on.
    """
    _C = cfg.MODEL.TIMM = CN()
    # A network of timm that gives feature maps, e.g. "mobilenetv3_large_100", "resnet18",
    # "tf_efficientnet_lite0".
    _C.NAME = ""
    # Its feature maps that the FPN may read, as timm numbers them; [] is all of stride 4 to 32.
    # A map of stride 4 is "res2" in MODEL.FPN.IN_FEATURES, one of stride 8 "res3", and so on.
    _C.OUT_INDICES = []
    # Start from timm's own weights, which timm downloads.
    _C.PRETRAINED = False
    # Start from a file with the network's tensors under timm's names ("" for none); a classifier in
    # it is left out. tools/convert_timm_weights.py makes one from other releases of the network.
    _C.WEIGHTS = ""
    # "" keeps BatchNorm as the network has it; "FrozenBN" freezes statistics and scales.
    _C.NORM = ""


def is_timm(cfg: CN) -> bool:
    """Whether the detector's backbone is a network of timm."""
    return "timm" in cfg.MODEL.BACKBONE.NAME


def forget_start(cfg: CN) -> None:
    """Build the network without its own starting weights: a whole detector's are loaded over it."""
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.TIMM.PRETRAINED = False
