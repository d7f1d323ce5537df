# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Paired bootstrap over images: how far a difference of AP depends on which images were tested.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).
Both detectors are evaluated on the same resample, so what makes an image hard for both cancels.

Shape shorthand:
    I: images; B: resamples
"""

import math
from typing import NamedTuple

import numpy as np

from .matches import Matches
from .scores import score, score_names

__all__ = ["SEED", "Difference", "compare_scores", "draw_resamples"]

SEED = 0
# Percent of the resamples that lie in an interval.
COVERED = 95


class Difference(NamedTuple):
    """One AP of two detectors, in percent.

    Attributes:
        name: "AP", "AP50", "AP <class>", ...
        ours, baseline: on the test set as it is; NaN where it has no such object.
        low, high: of the interval of ours - baseline.
    """

    name: str
    ours: float
    baseline: float
    low: float
    high: float

    @property
    def gain(self) -> float:
        return self.ours - self.baseline

    @property
    def known(self) -> bool:
        """Whether there are objects to find."""
        return math.isfinite(self.gain)

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval is above or below 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def draw_resamples(num_images: int, resamples: int, seed: int = SEED) -> np.ndarray:
    """(I, B) how often each image is in each resample of as many images, drawn with replacement."""
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples)
    return np.ascontiguousarray(counts.T, dtype=np.int32)


def compare_scores(ours: Matches, baseline: Matches, counts: np.ndarray) -> list[Difference]:
    """Every AP of two detectors with the interval of their difference.

    Args:
        ours, baseline: on one test set.
        counts: from ``draw_resamples``.
    """
    one = [score(x) for x in (ours, baseline)]
    many = [score(x, counts) for x in (ours, baseline)]
    found = []
    for name in score_names(ours.classes):
        now = [100 * float(x[name][0]) for x in one]
        low, high = _interval(100 * (many[0][name] - many[1][name]))
        found.append(Difference(name, now[0], now[1], low, high))
    return found


def _interval(differences: np.ndarray) -> tuple[float, float]:
    known = differences[np.isfinite(differences)]
    if not len(known):
        return math.nan, math.nan
    rest = (100 - COVERED) / 2
    low, high = np.percentile(known, [rest, 100 - rest])
    return float(low), float(high)
