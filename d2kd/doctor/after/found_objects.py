# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Which objects a detector finds at IoU 0.5, and which of them another one finds.

A detector is asked at the score at which its F1 over all classes is highest: what a score means
differs from detector to detector, and at a score of 0.05 nearly everything is found.
"""

from typing import NamedTuple

import numpy as np

from .matches import Matches

__all__ = ["FoundObjects", "best_score", "find_objects"]


class FoundObjects(NamedTuple):
    """Objects of one class, or of all, by who finds them.

    Attributes:
        name: of the class; "all".
        objects: how many there are.
        missed: by the teacher.
        ours_of_missed, baseline_of_missed: how many of the missed ones each student finds.
        ours_of_found, baseline_of_found: how many of those that the teacher finds.
    """

    name: str
    objects: int
    missed: int
    ours_of_missed: int
    baseline_of_missed: int
    ours_of_found: int
    baseline_of_found: int

    @property
    def found(self) -> int:
        """By the teacher."""
        return self.objects - self.missed


def best_score(matches: Matches) -> float:
    """The lowest score of the detections that give the highest F1 at IoU 0.5."""
    order = np.argsort(-matches.scores, kind="stable")
    hits = np.cumsum(matches.hits[order])
    # F1 = 2 TP / (detections + objects).
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + len(matches.objects.ids))
    return float(matches.scores[order][f1.argmax()]) if len(order) else 1.0


def find_objects(teacher: Matches, ours: Matches, baseline: Matches) -> list[FoundObjects]:
    """All classes together first, then each that has an object.

    Args:
        teacher, ours, baseline: on one test set, so that their objects are the same.
    """
    theirs, mine, base = (x.objects.scores >= best_score(x) for x in (teacher, ours, baseline))
    classes = teacher.objects.classes
    rows = [("all", np.ones(len(classes), dtype=bool))]
    rows += [(name, classes == index) for index, name in enumerate(teacher.classes)]

    def count(name: str, of: np.ndarray) -> FoundObjects:
        missed, found = of & ~theirs, of & theirs
        sets = of, missed, missed & mine, missed & base, found & mine, found & base
        return FoundObjects(name, *(int(x.sum()) for x in sets))

    return [count(name, of) for name, of in rows if of.any()]
