# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""COCO metrics, and VOC AP50 beside them for declared data sets."""

from .evaluator import VOCAP50Evaluator, build_evaluator

__all__ = ["VOCAP50Evaluator", "build_evaluator"]
