# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The bootstrap against COCOeval on sets in which the images are really repeated."""

import math

import numpy as np
import pytest

from d2kd.doctor.after.bootstrap import compare_scores, draw_resamples, resample_scores
from d2kd.doctor.after.matches import match_detections
from d2kd.doctor.after.scores import score, score_names
from tests.doctor.after.random_sets import coco_scores, random_detections, random_set


@pytest.fixture(scope="module")
def tested():
    """A set, the detections of two detectors in it, and their matches."""
    rng = np.random.default_rng(5)
    test_set = random_set(rng)
    rows = [random_detections(rng, test_set) for _ in range(2)]
    return test_set, rows, [match_detections(test_set, x, 100) for x in rows]


def test_scores_are_those_of_cocoeval(tested):
    test_set, rows, matches = tested
    found = score(matches[0])
    expected = coco_scores(test_set, rows[0], [1] * matches[0].num_images)
    assert list(found) == score_names(test_set.classes) == list(expected)
    assert {k: v[0] for k, v in found.items()} == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_scores_of_resamples_are_those_of_repeated_images(tested):
    test_set, rows, matches = tested
    counts = draw_resamples(matches[0].num_images, 12, seed=3)
    found = score(matches[1], counts)
    for column in range(12):
        expected = coco_scores(test_set, rows[1], counts[:, column].astype(int))
        ours = {name: values[column] for name, values in found.items()}
        assert ours == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_intervals_are_percentiles_of_paired_differences(tested):
    test_set, rows, matches = tested
    counts = draw_resamples(matches[0].num_images, 12, seed=4)
    pairs = [
        [coco_scores(test_set, x, counts[:, i].astype(int))["AP"] for x in rows] for i in range(12)
    ]
    low, high = np.percentile([100 * (a - b) for a, b in pairs], [2.5, 97.5])
    row = compare_scores(*(resample_scores(x, counts) for x in matches))[0]
    assert (row.name, row.low, row.high) == ("AP", pytest.approx(low), pytest.approx(high))
    one = [100 * coco_scores(test_set, x, [1] * len(counts))["AP"] for x in rows]
    assert [row.ours, row.baseline] == pytest.approx(one) and row.gain == row.ours - row.baseline


def test_a_detector_does_not_differ_from_itself(tested):
    matches = tested[2][0]
    scores = resample_scores(matches, draw_resamples(matches.num_images, 20))
    for row in compare_scores(scores, scores):
        assert row.sign == 0 and (row.gain == row.low == row.high == 0 or not row.known)


def test_resamples_have_as_many_images_and_are_drawn_from_the_seed():
    counts = draw_resamples(30, 50)
    assert counts.shape == (30, 50) and (counts.sum(0) == 30).all()
    assert np.array_equal(counts, draw_resamples(30, 50))
    assert not np.array_equal(counts, draw_resamples(30, 50, seed=1))
    assert (counts == 0).mean() == pytest.approx(math.exp(-1), abs=0.03)
