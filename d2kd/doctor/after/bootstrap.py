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
from .scores import score

__all__ = ["SEED", "Difference", "compare_scores", "draw_resamples", "resample_scores"]

SEED = 0
# Percent of the resamples that lie in an interval.
COVERED = 95

Scores = dict[str, np.ndarray]


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
    return np.ascontiguousarray(counts.T, dtype=np.float32)


def resample_scores(matches: Matches, counts: np.ndarray) -> Scores:
    """Every AP of one detector in percent: (1 + B,), of the test set as it is and resampled.

    Args:
        matches: of the detector.
        counts: from ``draw_resamples``.
    """
    whole = np.concatenate([np.ones_like(counts[:, :1]), counts], axis=1)
    return {name: 100 * values for name, values in score(matches, whole).items()}


def compare_scores(ours: Scores, baseline: Scores) -> list[Difference]:
    """Every AP of two detectors with the interval of their difference.

    Args:
        ours, baseline: from ``resample_scores`` with the same counts.
    """
    found = []
    for name, values in ours.items():
        others = baseline[name]
        low, high = _interval(values[1:] - others[1:])
        found.append(Difference(name, float(values[0]), float(others[0]), low, high))
    return found


def _interval(differences: np.ndarray) -> tuple[float, float]:
    known = differences[np.isfinite(differences)]
    if not len(known):
        return math.nan, math.nan
    rest = (100 - COVERED) / 2
    low, high = np.percentile(known, [rest, 100 - rest])
    return float(low), float(high)
