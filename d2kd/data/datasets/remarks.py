# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What was suspicious or repaired while a data set was loaded: counted by kind."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ...utils.text import first_few

__all__ = ["HUGE", "KINDS", "TINY", "Kind", "Remarks"]

# Side in pixels below which no object can be made out.
TINY = 8
# Pixels of an image above which decoding takes seconds and gigabytes.
HUGE = 50_000_000

logger = logging.getLogger(__name__)


class Kind(NamedTuple):
    """One kind of remark.

    Attributes:
        check: its name in the doctor's table.
        text: follows the count of cases.
        advice: what to do about it.
        amount: how much, with {median:g} and {most:g} of the cases' amounts; empty for none.
    """

    check: str
    text: str
    advice: str
    amount: str = ""


KINDS = {
    "suspect": Kind(
        "boxes as written",
        "boxes do not look like what FORMAT says",
        "draw a few of the boxes over their images, and correct the annotations",
    ),
    "swapped": Kind(
        "boxes swapped",
        "boxes have a negative width or height (VOC: a minimum above its maximum); "
        "their corners were swapped",
        "check a few of them, and correct the annotations",
    ),
    "clipped": Kind(
        "boxes clipped",
        "boxes leave their image and were clipped to it",
        "correct the annotations if this is more than rounding",
        "by {median:.3g} pixels at the median, {most:.3g} at most",
    ),
    "dropped": Kind(
        "boxes dropped",
        "boxes without width or height inside their image were dropped",
        "correct these annotations, or remove them",
    ),
    "repeated": Kind(
        "boxes repeated",
        "annotations repeat another one of their image: the same class and box. They are kept",
        "remove the copies",
    ),
    "listed_twice": Kind(
        "images listed twice",
        "images have the file of another one, and count twice",
        "join their annotations under one image",
    ),
    "counted_from_0": Kind(
        "counted from 0",
        "annotation files have an xmin or ymin of 0, which no file that counts pixels from 1, as "
        "VOC does, can have. 1 is subtracted all the same: every box may lie one pixel too far "
        "up and left",
        "set COUNT_FROM of this data set to 0 if its coordinates are counted from 0",
    ),
    "crowded": Kind(
        "crowded images",
        "images have more objects than TEST.DETECTIONS_PER_IMAGE: not all can be detected",
        "raise TEST.DETECTIONS_PER_IMAGE",
        "{most:g} objects at most",
    ),
    "masks": Kind(
        "masks left out",
        "objects have a mask that cannot be used (no polygon of 3 points or more, or a run-length "
        "encoding of another size than its image); the boxes are kept, without the mask",
        "correct 'segmentation' if you need masks",
    ),
    "unsized": Kind(
        "image sizes",
        "annotation files give 0 as the size of their image; the image file's is used",
        "write the size of the image into them",
    ),
    "turned": Kind(
        "turned photos",
        "images are turned or mirrored by their EXIF tag when they are read, and their size does "
        "not tell whether they were labelled as turned",
        "draw a few of their boxes over the turned image; save the images without the tag",
    ),
    "outside": Kind(
        "image paths",
        "image files lie outside the declared image folder",
        "is IMAGES the right folder?",
    ),
    "huge": Kind(
        "huge images",
        f"images have more than {HUGE // 10**6} million pixels",
        "scale them down",
    ),
    "tiny": Kind(
        "tiny images",
        f"images have a side of less than {TINY} pixels: nothing can be learnt",
        "remove them, or annotate larger ones",
    ),
}


class Remarks:
    """The remarks on one data set."""

    def __init__(self) -> None:
        self._cases: dict[str, list[tuple[str, float]]] = {kind: [] for kind in KINDS}
        self._texts: dict[str, str] = {}

    def add(self, kind: str, where: str, amount: float = 0.0) -> None:
        """Count one case.

        Args:
            kind: a key of KINDS.
            where: the file, and what of it.
            amount: how much; read by kinds that say it.
        """
        self._cases[kind].append((where, amount))

    def say(self, kind: str, text: str) -> None:
        """Add a remark on the data set as a whole, which stands for itself."""
        self._texts[kind] = text

    def count(self, kind: str) -> int:
        """How many cases of a kind there are."""
        return len(self._cases[kind])

    def described(self) -> Iterator[tuple[Kind, str]]:
        """Each kind that occurred, with its count, how much it was and the first few files."""
        for name, kind in KINDS.items():
            if name in self._texts:
                yield kind, self._texts[name]
            if self._cases[name]:
                yield kind, self._describe(name, kind)

    def _describe(self, name: str, kind: Kind) -> str:
        places, amounts = zip(*self._cases[name])
        text = f"{len(places)} {kind.text}"
        if kind.amount:
            text += f" ({kind.amount.format(median=np.median(amounts), most=max(amounts))})"
        return f"{text}: {first_few(places)}"

    def log(self, name: str) -> None:
        """One warning for each kind that occurred in the data set of this name."""
        for kind, text in self.described():
            logger.warning("%s: %s; %s", name, text, kind.advice)
