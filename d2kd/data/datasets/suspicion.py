# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Do the boxes of a whole data set, as they were written, mean what their format says?

A single wrong box is repaired and counted; when most are wrong in one way, the format is.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Suspicion", "suspect"]

# Pixels that a box may leave its image by: rounding, and formats that count from 0 or 1.
SLACK = 1.0
# Share of the boxes that makes "most", and that makes "all" in spite of a few mistakes.
MOST, NEARLY_ALL = 0.5, 0.95
# Share of boxes outside their images from which another reading of all boxes is suggested.
SOME = 0.1
# Percentages are only suspected where so many boxes end below 100 in larger images.
PERCENT, MANY = 100.0, 10
# Share of the images' sides that boxes of images which were enlarged afterwards end within.
UPPER_LEFT = 0.6

ADVICE = "Draw a few boxes over their images, and correct the annotations."


class Suspicion(NamedTuple):
    """What the boxes look like instead, and whether training on them would be pointless."""

    text: str
    fatal: bool


def suspect(numbers: np.ndarray, sizes: np.ndarray, corners: bool) -> Suspicion | None:
    """What is wrong with the boxes as a whole; None if nothing is.

    Args:
        numbers: (N, 4) as they were written.
        sizes: (N, 2) width and height of each box's image, in pixels.
        corners: whether the format means x0, y0, x1, y1; else x, y, width, height.
    """
    if not len(numbers):
        return None
    return (
        _relative(numbers, sizes)
        or (_sizes(numbers, sizes) if corners else _corners(numbers, sizes))
        or _outside(_as_corners(numbers, corners), sizes)
        or _percent(_as_corners(numbers, corners), sizes)
        or _upper_left(_as_corners(numbers, corners), sizes)
    )


def _as_corners(numbers: np.ndarray, corners: bool) -> np.ndarray:
    """(N, 4) x0, y0, x1, y1, each minimum below its maximum."""
    low = numbers[:, :2]
    with np.errstate(over="ignore"):
        high = numbers[:, 2:] if corners else low + numbers[:, 2:]
    return np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=1)


def _leaves(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) whether a box in corners leaves its image."""
    low, high = boxes[:, :2] < -SLACK, boxes[:, 2:] > sizes + SLACK
    return np.asarray(low.any(axis=1) | high.any(axis=1))


def _relative(numbers: np.ndarray, sizes: np.ndarray) -> Suspicion | None:
    """Fractions of the image's size where pixels are meant."""
    within = ((numbers >= 0) & (numbers <= 1)).all(axis=1) & (sizes > 2).all(axis=1)
    if within.mean() <= MOST:
        return None
    text = (
        f"{within.sum()} of {len(numbers)} boxes have all coordinates within 0 and 1: they are "
        "normalised, but pixels are expected. Multiply x and widths by the image's width, y and "
        "heights by its height."
    )
    return Suspicion(text, True)


def _corners(numbers: np.ndarray, sizes: np.ndarray) -> Suspicion | None:
    """Two corners where a corner and a size are meant."""
    leaves = _leaves(_as_corners(numbers, False), sizes)
    fits = (numbers[:, 2:] > numbers[:, :2]).all(axis=1) & ~_leaves(numbers, sizes)
    if fits.mean() < NEARLY_ALL or leaves.mean() <= SOME:
        return None
    text = (
        f"{leaves.sum()} of {len(numbers)} boxes leave their image if they are [x, y, width, "
        f"height], as COCO says; {fits.sum()} fit if they are [x0, y0, x1, y1], which they look "
        "like. Write x1 - x0 and y1 - y0 in place of x1 and y1."
    )
    return Suspicion(text, bool(leaves.mean() > MOST))


def _sizes(numbers: np.ndarray, sizes: np.ndarray) -> Suspicion | None:
    """A corner and a size where two corners are meant."""
    inverted = (numbers[:, 2:] < numbers[:, :2]).any(axis=1)
    fits = (numbers[:, 2:] > 0).all(axis=1) & ~_leaves(_as_corners(numbers, False), sizes)
    if fits.mean() < NEARLY_ALL or inverted.mean() <= MOST:
        return None
    text = (
        f"{inverted.sum()} of {len(numbers)} boxes have a maximum below its minimum; {fits.sum()} "
        "fit if their four numbers are x, y, width and height, which they look like. Write "
        "x + width and y + height as the maxima."
    )
    return Suspicion(text, True)


def _outside(boxes: np.ndarray, sizes: np.ndarray) -> Suspicion | None:
    """Boxes of other images, or of images of another size."""
    gone = (boxes[:, 2:] < 0).any(axis=1) | (boxes[:, :2] > sizes).any(axis=1)
    if gone.mean() > MOST:
        text = f"{gone.sum()} of {len(boxes)} boxes lie wholly outside their image. {ADVICE}"
        return Suspicion(text, True)
    leaves = _leaves(boxes, sizes)
    if leaves.mean() > MOST:
        text = f"{leaves.sum()} of {len(boxes)} boxes leave their image. {ADVICE}"
        return Suspicion(text, False)
    return None


def _percent(boxes: np.ndarray, sizes: np.ndarray) -> Suspicion | None:
    """Percentages of the image's size where pixels are meant."""
    most = boxes.max()
    larger = (sizes > 1.2 * PERCENT).all()
    if len(boxes) < MANY or not larger or not 0.8 * PERCENT < most <= PERCENT:
        return None
    text = (
        f"all {len(boxes)} boxes end within {most:g}, though every image is larger: are they "
        f"percentages? Pixels are expected. {ADVICE}"
    )
    return Suspicion(text, False)


def _upper_left(boxes: np.ndarray, sizes: np.ndarray) -> Suspicion | None:
    """Boxes of smaller images, where the stated sizes were changed and the boxes were not."""
    most = (boxes[:, 2:] / sizes).max()
    if len(boxes) < MANY or most > UPPER_LEFT:
        return None
    text = (
        f"all {len(boxes)} boxes end within {most:.2f} of their image's width and height: were the "
        f"images enlarged after they were annotated? {ADVICE}"
    )
    return Suspicion(text, False)
