# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Detectron2's FCOS for yaml configs: the same modules, so the same checkpoints.

Shape shorthand in this file:
    R: points of all levels of one image
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from detectron2.modeling.meta_arch import fcos as d2_fcos
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ...utils.errors import ConfigError
from ..backbone.top_block import LinearP6P7
from .fcos_head import BOX_PREDICTIONS, CENTERNESS_BRANCHES, ScaledFCOSHead

__all__ = ["FCOS", "build_fcos_resnet_fpn_backbone", "build_gfl_resnet_fpn_backbone"]


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN with two further levels made from the FPN's last one.

    It differs from Detectron2's ``build_retinanet_resnet_fpn_backbone`` in that P6 reads P5
    instead of C5 (arXiv 2006.09214, section 2.2), and takes its stages from ``MODEL.FPN``: with
    IN_FEATURES that end in res4, the further levels are p5 and p6.
    """
    return _build_fpn(cfg, input_shape, LastLevelP6P7)


@BACKBONE_REGISTRY.register()
def build_gfl_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same without the ReLU between P6 and P7, as GFL has it; equal parameters."""
    return _build_fpn(cfg, input_shape, LinearP6P7)


def _build_fpn(cfg: CfgNode, input_shape: ShapeSpec, top_block: type[LastLevelP6P7]) -> FPN:
    in_features, channels = cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS
    last_level = in_features[-1].replace("res", "p")
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=in_features,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block(channels, channels, in_feature=last_level),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@META_ARCH_REGISTRY.register()
class FCOS(d2_fcos.FCOS):
    """FCOS (arXiv 1904.01355, 2006.09214), buildable with ``MODEL.META_ARCHITECTURE: FCOS``.

    The state_dict has the keys and shapes of the model zoo's ``fcos_R_50_FPN_1x.py``, so what
    either trained, the other loads. (Detectron2 publishes that config without weights.)
    """

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        """Take the arguments of Detectron2's FCOS, or a config."""
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The constructor's arguments, from ``MODEL.FCOS``."""
        backbone = build_backbone(cfg)
        fcos = cfg.MODEL.FCOS
        return {
            "backbone": backbone,
            "head": _build_head(fcos, backbone.output_shape()),
            "head_in_features": fcos.IN_FEATURES,
            "num_classes": fcos.NUM_CLASSES,
            "center_sampling_radius": fcos.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": fcos.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": fcos.FOCAL_LOSS_GAMMA,
            "test_score_thresh": fcos.SCORE_THRESH_TEST,
            "test_topk_candidates": fcos.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": fcos.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Any]]:
        """Match as Detectron2's FCOS does, also where an image has no ground truth.

        Returns:
            A label (R,) and the matched boxes (R, 4) for each image; the boxes as ``Boxes`` in
            Detectron2 0.6 and as tensors since.
        """
        return super().label_anchors(anchors, [_with_a_box(x) for x in gt_instances])

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_deltas: list[Tensor],
        gt_boxes: list[Any],
        pred_centerness: list[Tensor],
    ) -> dict[str, Tensor]:
        """Compute Detectron2's FCOS losses in float32: its GIoU fails on what autocast gives."""
        predictions = pred_logits, pred_deltas, pred_centerness
        logits, deltas, centerness = ([x.float() for x in maps] for maps in predictions)
        return super().losses(anchors, logits, gt_labels, deltas, gt_boxes, centerness)


def _build_head(fcos: CfgNode, shapes: dict[str, ShapeSpec]) -> d2_fcos.FCOSHead:
    """The head for these backbone shapes: ``MODEL.FCOS``, level name -> ShapeSpec.

    Raises:
        ConfigError: BOX_PREDICTION and CENTERNESS_BRANCH have no such value, or do not go together.
    """
    boxes, centerness = fcos.BOX_PREDICTION, fcos.CENTERNESS_BRANCH
    _check_choice("MODEL.FCOS.BOX_PREDICTION", boxes, BOX_PREDICTIONS)
    # Detectron2's own head has centerness on the box branch.
    branches = CENTERNESS_BRANCHES if boxes != "linear" else ("box",)
    _check_choice("MODEL.FCOS.CENTERNESS_BRANCH", centerness, branches)
    input_shape = [shapes[name] for name in fcos.IN_FEATURES]
    arguments = {
        "input_shape": input_shape,
        "num_classes": fcos.NUM_CLASSES,
        "conv_dims": [input_shape[0].channels] * fcos.NUM_CONVS,
        "norm": fcos.NORM,
        "prior_prob": fcos.PRIOR_PROB,
    }
    if boxes == "linear":
        return d2_fcos.FCOSHead(**arguments)
    return ScaledFCOSHead(**arguments, box_prediction=boxes, centerness_branch=centerness)


def _check_choice(key: str, found: str, values: tuple[str, ...]) -> None:
    if found not in values:
        raise ConfigError(f"{key} is {found!r}: set it to one of {values}")


def _with_a_box(instances: Instances) -> Instances:
    # Release 0.6 takes a maximum over an image's boxes, so there must be one. A point is matched
    # only strictly inside a box, and nothing lies inside a box without area.
    if len(instances):
        return instances
    device = instances.gt_boxes.device
    return Instances(
        instances.image_size,
        gt_boxes=Boxes(torch.zeros(1, 4, device=device)),
        gt_classes=torch.zeros(1, dtype=torch.long, device=device),
    )
