# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""COCO's average precision as a function of how often each image counts.

A resample of the images is a number for each of them. What a detection matches does not depend on
the other images, so a resample only changes the counts from which precision and recall are made.

Shape shorthand:
    I: images of the test set; B: resamples; D: detections; M: true positives; R: 101 recalls
"""

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["RECALLS", "average_precision"]

# pycocotools' own points, bit by bit: 0.3 is not 3 / 10 in every way of computing it.
RECALLS = np.linspace(0.0, 1.00, 101)
# Numbers of an array that is held at once.
_MOST_NUMBERS = 4_000_000


def average_precision(
    images: np.ndarray, hits: np.ndarray, wanted: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """AP of one class at one IoU, for every resample: COCOeval's mean precision at 101 recalls.

    Equal to COCOeval on the images repeated as often as they count, unless two detections of one
    image have one score.

    Args:
        images: (D,) index of each detection's image, in order of falling score; ignored ones are
            left out.
        hits: (D,) bool, the true positives.
        wanted: (B,) objects to find in each resample.
        counts: (I, B) float32, how often each image counts; sums of them are exact up to 2^24.

    Returns:
        (B,) in 0..1; NaN where a resample has no object to find.
    """
    if not wanted.any():
        return np.full(len(wanted), np.nan)
    hit_at = np.flatnonzero(hits)
    if not len(hit_at):
        return np.where(wanted > 0, 0.0, np.nan)
    part = max(_MOST_NUMBERS // len(hit_at), 1)
    parts = [
        _of_part(images, hit_at, wanted[i : i + part], counts[:, i : i + part])
        for i in range(0, len(wanted), part)
    ]
    return np.concatenate(parts)


def _of_part(
    images: np.ndarray, hit_at: np.ndarray, wanted: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    found = np.cumsum(counts[images[hit_at]], axis=0, dtype=np.float64)
    precision = found / np.maximum(_seen(images, hit_at, counts), 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at_recall = _first_with(found.T, _needed(wanted)).T
    padded = np.concatenate([precision, np.zeros((1, precision.shape[1]))])
    mean = np.take_along_axis(padded, at_recall, axis=0).mean(axis=0)
    return np.where(wanted > 0, mean, np.nan)


def _seen(images: np.ndarray, hit_at: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(M, B): the detections up to each true positive; what comes after the last is never read.

    The rows of the detections between two true positives are added without a copy of them all.
    """
    before, last = np.concatenate([[0], hit_at[:-1] + 1]), hit_at[-1] + 1
    index, starts = (torch.from_numpy(x.astype(np.int64)) for x in (images[:last], before))
    table = torch.from_numpy(np.ascontiguousarray(counts))
    between = F.embedding_bag(index, table, starts, mode="sum")
    return np.cumsum(between.numpy(), axis=0, dtype=np.float64)


def _needed(wanted: np.ndarray) -> np.ndarray:
    """(B, R): the least number of found objects whose recall is at least each of RECALLS."""
    whole = np.maximum(wanted, 1).astype(np.float64)[:, None]
    least = np.ceil(RECALLS * whole)
    # Rounding may put the product on the wrong side; the quotient is what COCOeval compares.
    least -= (least - 1) / whole >= RECALLS
    least += least / whole < RECALLS
    return least


def _first_with(found: np.ndarray, least: np.ndarray) -> np.ndarray:
    """In each row of ``found`` (B, M), rising, where it first reaches ``least`` (B, R); else M."""
    rows, columns = found.shape
    # One search through all rows, each above the one before; float64 holds these integers exactly.
    shift = (max(found.max(), least.max()) + 1) * np.arange(rows)[:, None]
    index = np.searchsorted((found + shift).ravel(), (least + shift).ravel())
    return index.reshape(least.shape) - columns * np.arange(rows)[:, None]
