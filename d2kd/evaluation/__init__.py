# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""COCO metrics, and VOC AP50 beside them for declared data sets."""

from .check_test_sets import check_test_sets
from .evaluator import VOCAP50Evaluator, build_evaluator
from .expected_results import verify_expected_results

__all__ = ["VOCAP50Evaluator", "build_evaluator", "check_test_sets", "verify_expected_results"]
