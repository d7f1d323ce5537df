# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""AP of resampled images: closed forms."""

import numpy as np
import pytest

from d2kd.doctor.after import average_precision as module
from d2kd.doctor.after.average_precision import average_precision


def _ap(images, hits, positives, counts=None):
    positives = np.array(positives, dtype=np.float32)
    counts = np.ones((len(positives), 1)) if counts is None else counts
    counts = np.array(counts, dtype=np.float32)
    images, hits = np.array(images, dtype=int), np.array(hits, dtype=bool)
    return average_precision(images, hits, positives @ counts, counts)


def test_average_precision_is_that_of_hand():
    # Recall 1/2 at precision 1, recall 1 at precision 2/3: 51 points at 1, 50 at 2/3.
    assert _ap([0, 0, 0], [1, 0, 1], [2])[0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert _ap([0], [1], [1]).tolist() == [1.0]


def test_average_precision_reads_recalls_that_are_reached_exactly():
    """3 of 10 objects: the point 0.3 counts, as in COCOeval."""
    found = _ap([0] * 3, [1] * 3, [10])[0]
    assert found == pytest.approx(np.count_nonzero(3 / 10 >= module.RECALLS) / 101)


def test_average_precision_without_objects_or_detections():
    assert np.isnan(_ap([0, 0], [0, 0], [0])[0])
    assert _ap([0, 0], [0, 0], [1]).tolist() == [0.0]
    assert _ap([], [], [2]).tolist() == [0.0]


def test_average_precision_of_a_resample_without_the_objects_is_nan():
    found = _ap([0, 1], [1, 0], [1, 0], [[1, 0, 2], [1, 2, 0]])
    assert found[0] == found[2] == 1 and np.isnan(found[1])


def test_average_precision_does_not_depend_on_how_it_is_cut(monkeypatch):
    rng = np.random.default_rng(0)
    images, hits = rng.integers(0, 6, 80), rng.random(80) < 0.4
    counts = rng.multinomial(6, np.full(6, 1 / 6), size=13).T
    whole = _ap(images, hits, np.full(6, 9), counts)
    monkeypatch.setattr(module, "_MOST_NUMBERS", 12)
    assert np.array_equal(_ap(images, hits, np.full(6, 9), counts), whole)


def test_recalls_are_reached_where_cocoeval_finds_them():
    """It searches the quotients; ceil(0.07 * 100) is 8, but 7 / 100 is not below 0.07."""
    wanted = np.arange(1, 300)
    expected = [np.searchsorted(np.arange(n + 1) / n, module.RECALLS) for n in wanted]
    assert np.array_equal(module._needed(wanted), expected)
