# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Who finds which objects."""

import numpy as np

from d2kd.doctor.after.found_objects import FoundObjects, best_score, find_objects
from d2kd.doctor.after.matches import Matches, Objects


def _matches(object_scores, false=()):
    """One detection for each object that is found, and some that are wrong."""
    scores = np.array(object_scores, dtype=float)
    classes = np.array([0, 0, 0, 1])
    found = scores[scores >= 0]
    hits = np.array([True] * len(found) + [False] * len(false))
    objects = Objects(np.arange(4), classes, scores)
    return Matches(("a", "b", "c"), 2, {}, objects, np.array([*found, *false]), hits)


def test_best_score_is_where_f1_is_highest():
    # Of 4 objects: F1 at 0.9 is 2/5, at 0.6 4/6, at 0.5 4/7, at 0.1 6/8 with three of four right.
    assert best_score(_matches([0.9, 0.6, -1, -1], [0.5])) == 0.6
    assert best_score(_matches([0.9, 0.6, 0.1, -1], [0.5])) == 0.1
    assert best_score(_matches([-1, -1, -1, -1])) == 1.0


def test_objects_are_counted_by_who_finds_them():
    teacher = _matches([0.9, 0.9, -1, -1])
    ours, baseline = _matches([0.8, -1, 0.8, -1]), _matches([0.3, 0.3, -1, 0.3])
    assert find_objects(teacher, ours, baseline) == [
        FoundObjects("all", 4, 2, 1, 1, 1, 2),
        FoundObjects("a", 3, 1, 1, 0, 1, 2),
        FoundObjects("b", 1, 1, 0, 1, 0, 0),
    ]


def test_detections_below_the_best_score_find_nothing():
    """The last object is matched at 0.05, below so many wrong ones that it does not count."""
    teacher = _matches([0.9, 0.9, 0.9, 0.05], [0.5] * 20)
    other = _matches([0.9] * 4)
    assert find_objects(teacher, other, other)[0].missed == 1
