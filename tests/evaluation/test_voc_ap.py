# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""VOC's average precision in closed form, and against the development kit's procedure as a loop."""

import math

import numpy as np
import pytest

from d2kd.evaluation.voc_ap import average_precision, voc_average_precision

BOX = (10.0, 10.0, 30.0, 30.0)
ELSEWHERE = (50.0, 50.0, 60.0, 60.0)


def ap(detections, truth):
    """detections: (box, score, image); truth: (box, image, ignore)."""
    return voc_average_precision(
        np.array([d[0] for d in detections], dtype=float).reshape(-1, 4),
        np.array([d[1] for d in detections], dtype=float),
        np.array([d[2] for d in detections], dtype=str),
        np.array([t[0] for t in truth], dtype=float).reshape(-1, 4),
        np.array([t[1] for t in truth], dtype=str),
        np.array([t[2] for t in truth], dtype=bool),
    )


def devkit_loop(detections, truth):
    """VOC's procedure detection by detection, with the area integrated over recall."""
    taken, hits = set(), []
    for box, _, image in sorted(detections, key=lambda d: -d[1]):
        best, overlap = None, 0.0
        for index, (other, other_image, _) in enumerate(truth):
            width = min(box[2], other[2]) - max(box[0], other[0])
            height = min(box[3], other[3]) - max(box[1], other[1])
            if other_image != image or width <= 0 or height <= 0:
                continue
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
            iou = width * height / (sum(areas) - width * height)
            if iou > overlap:
                best, overlap = index, iou
        if overlap >= 0.5 and truth[best][2]:
            continue
        hits.append(overlap >= 0.5 and best not in taken)
        if hits[-1]:
            taken.add(best)
    positives = sum(not t[2] for t in truth)
    recall = np.concatenate([[0], np.cumsum(hits) / positives, [1]])
    precision = np.concatenate([[0], np.cumsum(hits) / np.arange(1, len(hits) + 1), [0]])
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    return float(np.sum(np.diff(recall) * precision[1:]))


@pytest.mark.parametrize(
    "hits, positives, expected",
    [
        ([1, 1], 2, 1.0),
        ([1, 0, 1, 0], 3, (1 + 2 / 3) / 3),
        ([0, 1, 1], 2, 2 / 3),  # the envelope lifts the first one's 1/2 to 2/3
        ([1], 4, 0.25),
        ([0, 0], 1, 0.0),
        ([], 1, 0.0),
    ],
)
def test_area_in_closed_form(hits, positives, expected):
    assert average_precision(np.array(hits, dtype=bool), positives) == pytest.approx(expected)


def test_nothing_to_find():
    assert math.isnan(average_precision(np.array([True]), 0))
    assert math.isnan(ap([(BOX, 0.9, "a")], [(BOX, "a", True)]))
    assert math.isnan(ap([(BOX, 0.9, "a")], []))


def test_second_detection_of_a_box_is_wrong():
    detections = [(BOX, 0.5, "a"), (BOX, 0.9, "a"), (ELSEWHERE, 0.4, "a")]
    # right, wrong, right
    assert ap(detections, [(BOX, "a", False), (ELSEWHERE, "a", False)]) == pytest.approx(5 / 6)


def test_box_of_another_image_does_not_match():
    assert ap([(BOX, 0.9, "b")], [(BOX, "a", False)]) == 0


def test_detections_of_ignored_boxes_do_not_count():
    truth = [(BOX, "a", True), (ELSEWHERE, "a", False)]
    detections = [(BOX, 0.9, "a"), (BOX, 0.8, "a"), (ELSEWHERE, 0.1, "a")]
    assert ap(detections, truth) == 1
    assert ap(detections[:2], truth) == 0


def test_iou_of_a_half_is_enough():
    # 20 x 10 in 20 x 20: IoU exactly 1/2; one pixel less is too little.
    assert ap([((10, 10, 30, 20), 0.9, "a")], [(BOX, "a", False)]) == 1
    assert ap([((10, 10, 30, 19), 0.9, "a")], [(BOX, "a", False)]) == 0


def test_only_the_most_overlapped_box_counts():
    truth = [(BOX, "a", False), ((14.0, 10.0, 34.0, 30.0), "a", False)]
    detections = [(BOX, 0.9, "a"), ((10.5, 10.0, 30.5, 30.0), 0.8, "a")]
    # The second detection overlaps the free box by 0.7, but the taken one by more: wrong.
    assert ap(detections, truth) == 0.5


@pytest.mark.parametrize("seed", range(10))
def test_equals_the_loop_on_random_boxes(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, size=(12, 2))
    truth = [
        ((*c, *(c + rng.uniform(10, 30, 2))), str(rng.integers(3)), bool(rng.random() < 0.2))
        for c in corners
    ]
    detections = [
        (tuple(np.array(t[0]) + rng.normal(0, 2.5, 4)), rng.random(), t[1])
        for t in truth
        for _ in range(3)
    ]
    expected = devkit_loop(detections, truth)
    assert 0 < expected < 1
    assert ap(detections, truth) == pytest.approx(expected, abs=1e-9)
