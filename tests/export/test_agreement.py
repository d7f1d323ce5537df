# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The measure of agreement sees each kind of difference, and the tolerance refuses it."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2kd.export.agreement import compare
from d2kd.export.tolerance import TOLERANCES, check_agreement
from d2kd.utils.errors import ExportError

BOXES = [[0.0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 70, 70]]


def instances(boxes=BOXES, scores=(0.9, 0.8, 0.7), classes=(0, 1, 1), masks=None):
    result = Instances((80, 80), pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    result.scores, result.pred_classes = torch.tensor(scores), torch.tensor(classes)
    if masks is not None:
        result.pred_masks = torch.tensor(masks)
    return result


def of(found, expected=None, limit=100):
    return compare([instances() if expected is None else expected], [found], 0.05, limit)


def test_equal_detections_in_another_order_agree():
    found = instances(BOXES[::-1], (0.7, 0.8, 0.9), (1, 1, 0))
    assert of(found) == (1, 3, 0, 0, 0, 0, 0, 0)


def test_differences_are_the_largest_and_the_mean():
    moved = [[0.0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 70, 73]]
    found = of(instances(moved, (0.9, 0.8, 0.1)))
    assert (found.largest_box, found.mean_box) == (3, 1)
    assert found.largest_score == pytest.approx(0.6) and found.mean_score == pytest.approx(0.2)


def test_another_class_is_another_detection():
    found = of(instances(classes=(2, 1, 1)))
    assert found.unmatched == 2 and found.largest_score == pytest.approx(0.85)


def test_what_is_found_by_one_side_alone_counts_by_its_score_above_what_is_left_out():
    fewer = instances(BOXES[:2], (0.9, 0.8), (0, 1))
    assert of(fewer).largest_score == pytest.approx(0.65)
    assert of(fewer, limit=2).largest_score == 0  # 0.7 is below the lowest that was kept
    none = instances()[torch.zeros(3, dtype=torch.bool)]
    assert of(none).unmatched == 3 and of(none, none) == (1, 0, 0, 0, 0, 0, 0, 0)


def test_masks_differ_by_their_overlap():
    ours = instances(BOXES[:1], (0.9,), (0,), [[[True, True, False, False]]])
    theirs = instances(BOXES[:1], (0.9,), (0,), [[[True, False, False, False]]])
    assert of(theirs, ours).largest_mask == 0.5
    empty = instances(BOXES[:1], (0.9,), (0,), [[[False] * 4]])
    assert of(empty, empty).largest_mask == 0


def test_tolerance_limits_the_largest_or_the_mean():
    agreement = of(instances())
    check_agreement(agreement, TOLERANCES["float32"], "a.onnx")
    one_far = agreement._replace(largest_box=30.0, mean_box=0.01)
    check_agreement(one_far, TOLERANCES["float16"], "a.onnx")
    with pytest.raises(ExportError, match="a.onnx does not agree with PyTorch.* 30 px"):
        check_agreement(one_far, TOLERANCES["float32"], "a.onnx")
    for wrong in ({"largest_score": 0.01}, {"largest_box": math.nan}, {"largest_mask": 0.2}):
        with pytest.raises(ExportError, match="does not agree"):
            check_agreement(agreement._replace(**wrong), TOLERANCES["float32"], "a.onnx")
