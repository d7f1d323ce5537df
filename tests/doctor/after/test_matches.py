# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What is matched, beyond what AP says of it."""

import numpy as np
import pytest

from d2kd.doctor.after.evaluation_set import EvaluationSet
from d2kd.doctor.after.matches import match_detections
from d2kd.doctor.after.scores import score
from tests.doctor.after.random_sets import as_api


def _item(number, image, category, box, crowd=0):
    ids = {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd}
    return {**ids, "bbox": box, "area": box[2] * box[3]}


@pytest.fixture
def two_images():
    """Two objects of class 7, one of class 3, a crowd."""
    boxes = [[0, 0, 10, 10], [50, 50, 10, 10], [20, 20, 40, 40], [100, 100, 50, 50]]
    items = [(1, 1, 7), (2, 2, 7), (3, 2, 3), (4, 2, 3)]
    truth = [_item(*x, box, int(x[0] == 4)) for x, box in zip(items, boxes)]
    return EvaluationSet("toy", as_api([1, 2], truth), ("seven", "three"), (7, 3), "coco")


def _row(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_matches_know_which_objects_are_found(two_images):
    rows = [
        _row(1, 7, [0, 0, 10, 9], 0.9),
        _row(1, 7, [0, 0, 10, 10], 0.4),  # the object is taken
        _row(2, 3, [100, 100, 50, 50], 0.8),  # on a crowd: ignored
        _row(2, 7, [20, 20, 40, 40], 0.7),  # right box, wrong class
    ]
    found = match_detections(two_images, rows, 100)
    assert found.objects.ids.tolist() == [1, 2, 3]
    assert found.objects.classes.tolist() == [0, 0, 1]
    assert found.objects.scores.tolist() == [0.9, -1, -1]
    assert dict(zip(found.scores, found.hits)) == {0.9: True, 0.7: False, 0.4: False}
    assert found.cells[0, "all"].positives.tolist() == [1, 1]
    assert found.cells[0, "all"].images[0].tolist() == [0, 1, 0]


def test_a_detector_that_finds_nothing_has_ap_0(two_images):
    found = score(match_detections(two_images, [], 100))
    assert found["AP"][0] == 0 and np.isnan(found["APl"][0])


def test_detections_of_other_images_or_classes_are_refused(two_images):
    for row in (_row(9, 7, [0, 0, 1, 1], 0.5), _row(1, 9, [0, 0, 1, 1], 0.5)):
        with pytest.raises(KeyError):
            match_detections(two_images, [row], 100)


def test_a_class_that_the_sets_file_lacks_has_no_objects(two_images):
    wider = EvaluationSet("toy", two_images.truth, ("seven", "three", "none"), (7, 3, 11), "coco")
    found = score(match_detections(wider, [_row(1, 7, [0, 0, 10, 10], 0.9)], 100))
    assert np.isnan(found["AP none"][0]) and found["AP"][0] == pytest.approx(51 / 101 / 2)
