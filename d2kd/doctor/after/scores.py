# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""AP, by class and by size, of one detector under many resamples of the images.

Shape shorthand:
    I: images; B: resamples; K: classes
"""

import warnings

import numpy as np

from .average_precision import average_precision
from .matches import SIZES, Matches

__all__ = ["score", "score_names"]

# COCO's names of the sizes.
_SIZE_NAMES = {"small": "APs", "medium": "APm", "large": "APl"}


def score_names(classes: tuple[str, ...]) -> list[str]:
    """The keys of ``score``, in order; a class has "AP <its name>"."""
    return ["AP", "AP50", "AP75", *_SIZE_NAMES.values(), *(f"AP {name}" for name in classes)]


def score(matches: Matches, counts: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Every AP for every resample.

    Args:
        matches: of the detector.
        counts: (I, B) float32, how often each image counts; None counts each once (B = 1).

    Returns:
        name -> (B,) in 0..1, NaN where there is no object to find.
    """
    if counts is None:
        counts = np.ones((matches.num_images, 1), dtype=np.float32)
    by_size = {
        size: np.stack([_by_iou(matches, k, size, counts) for k in range(len(matches.classes))])
        for size in SIZES
    }
    whole = by_size["all"]  # (K, T, B)
    found = {"AP": _mean(whole.mean(axis=1))}
    found |= {"AP50": _mean(whole[:, 0]), "AP75": _mean(whole[:, 5])}
    found |= {name: _mean(by_size[size].mean(axis=1)) for size, name in _SIZE_NAMES.items()}
    found |= {f"AP {name}": whole[k].mean(axis=0) for k, name in enumerate(matches.classes)}
    return found


def _by_iou(matches: Matches, index: int, size: str, counts: np.ndarray) -> np.ndarray:
    """(T, B) of one class."""
    cell = matches.cells[index, size]
    wanted = cell.positives.astype(np.float32) @ counts
    return np.stack(
        [average_precision(i, h, wanted, counts) for i, h in zip(cell.images, cell.hits)]
    )


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the classes (K, B) that have an object."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a size that no class has
        return np.nanmean(values, axis=0)
