# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Which detectors can be exported, and how one becomes a function of tensors."""

import copy

import torch
from detectron2.config import CfgNode
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from torch import nn

from ...config import get_value
from ...config.detectors import find_detector
from ...utils.errors import ConfigError
from .candidates import Nms
from .dense import DENSE_READERS, TensorDenseDetector
from .rcnn import TensorRCNN

__all__ = ["build_graph", "check_exportable"]

# The parts of a detector that compute in float16 if asked for; boxes are decoded in float32.
_NETWORKS = (
    "backbone",
    "head",
    "proposal_generator.rpn_head",
    "roi_heads.box_head",
    "roi_heads.box_predictor",
    "roi_heads.mask_head",
)
_SCORES = ("RETINANET", "FCOS", "GFL", "ROI_HEADS")


def check_exportable(cfg: CfgNode, model: nn.Module) -> None:
    """Refuse what the graphs leave out.

    Args:
        cfg: the student's.
        model: built from it.

    Raises:
        ConfigError: names the key, its value and what can be exported.
    """
    row = find_detector(cfg)
    # A class that extends one of these may detect in a way of its own.
    own = row is None or row.name != cfg.MODEL.META_ARCHITECTURE
    if own or row.name not in ("GeneralizedRCNN", *DENSE_READERS):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} cannot be exported: only "
            f"{['GeneralizedRCNN', *DENSE_READERS]} can"
        )
    if row.two_stage:
        _check_two_stage(cfg, model)
    if cfg.TEST.DETECTIONS_PER_IMAGE < 1:
        raise ConfigError(
            f"TEST.DETECTIONS_PER_IMAGE is {cfg.TEST.DETECTIONS_PER_IMAGE}: an exported file gives "
            "as many rows for every image; set it to 1 or above, e.g. 100"
        )
    for key in (f"MODEL.{name}.SCORE_THRESH_TEST" for name in _SCORES):
        if (get_value(cfg, key) or 0) < 0:
            raise ConfigError(f"{key} is {get_value(cfg, key)}: set it to 0 or above")


def _check_two_stage(cfg: CfgNode, model: nn.Module) -> None:
    if type(model.roi_heads) is not StandardROIHeads:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME!r} cannot be exported: only "
            "'StandardROIHeads' can"
        )
    if model.roi_heads.keypoint_on:
        raise ConfigError("MODEL.KEYPOINT_ON is True: only boxes and masks can be exported")
    predictor = type(model.roi_heads.box_predictor)
    if predictor is not FastRCNNOutputLayers or cfg.MODEL.RPN.HEAD_NAME != "StandardRPNHead":
        raise ConfigError(
            f"MODEL.RPN.HEAD_NAME {cfg.MODEL.RPN.HEAD_NAME!r} with {predictor.__name__} cannot be "
            "exported: only 'StandardRPNHead' with FastRCNNOutputLayers can"
        )
    heads = ["ROI_BOX_HEAD", *(["ROI_MASK_HEAD"] if cfg.MODEL.MASK_ON else [])]
    for key in (f"MODEL.{name}.POOLER_TYPE" for name in heads):
        if get_value(cfg, key) not in ("ROIAlign", "ROIAlignV2"):
            raise ConfigError(
                f"{key} {get_value(cfg, key)!r} cannot be exported: only 'ROIAlignV2' and "
                "'ROIAlign' can"
            )


def build_graph(model: nn.Module, nms: Nms, half: bool = False) -> nn.Module:
    """A detector as a module that takes and gives tensors alone, in eval mode.

    Args:
        model: passed ``check_exportable``; it is not changed.
        nms: ``keep_by_nms``, or the same in another form.
        half: its networks compute in float16.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if half:
        for name in _NETWORKS:
            _halve(model, name)
    kind = TensorRCNN if hasattr(model, "roi_heads") else TensorDenseDetector
    return kind(model, nms, torch.float16 if half else torch.float32).eval()


def _halve(model: nn.Module, name: str) -> None:
    """Turn the part of a dotted name to float16, if the detector has it."""
    found = dict(model.named_modules()).get(name)
    if found is not None:
        found.half()
