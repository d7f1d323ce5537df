# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Backbones that Detectron2 lacks."""

from .timm_fpn import (
    build_fcos_timm_fpn_backbone,
    build_gfl_timm_fpn_backbone,
    build_retinanet_timm_fpn_backbone,
    build_timm_fpn_backbone,
)

__all__ = [
    "build_fcos_timm_fpn_backbone",
    "build_gfl_timm_fpn_backbone",
    "build_retinanet_timm_fpn_backbone",
    "build_timm_fpn_backbone",
]
