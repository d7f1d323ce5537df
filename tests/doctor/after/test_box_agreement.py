# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A student's boxes beside the teacher's."""

import math

import pytest

from d2kd.doctor.after.box_agreement import compare_boxes


def _row(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_boxes_are_compared_within_image_and_class():
    teacher = [
        _row(1, 1, [0, 0, 10, 10], 0.9),
        _row(1, 2, [0, 0, 10, 10], 0.8),
        _row(2, 1, [0, 0, 10, 10], 0.7),
        _row(3, 1, [0, 0, 10, 10], 0.1),
    ]
    student = [
        _row(1, 1, [0, 0, 10, 8], 0.5),
        _row(1, 1, [0, 0, 10, 6], 0.9),
        _row(1, 2, [0, 0, 10, 4], 0.9),
        _row(3, 1, [0, 0, 10, 10], 0.9),
    ]
    found = compare_boxes(student, teacher, 0.5)
    assert found.boxes == 3 and found.met == pytest.approx(1 / 3)
    assert found.iou == pytest.approx(0.8) and found.score_gap == pytest.approx(0.4)


def test_a_student_without_boxes_meets_none():
    found = compare_boxes([], [_row(1, 1, [0, 0, 10, 10], 0.9)], 0.5)
    assert found.boxes == 1 and found.met == 0 and math.isnan(found.iou)
