# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The doctor says how well the teacher knows the training images."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2kd.doctor import Status, teacher_checks
from d2kd.doctor.teacher_checks import Agreement
from tests.common.architectures import ARCHITECTURES
from tests.common.examine import examine
from tests.common.helpers import write_teacher


def _detections(boxes, classes, scores):
    found = Instances((64, 64), pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float)))
    found.pred_classes, found.scores = torch.tensor(classes), torch.tensor(scores)
    return found


def test_objects_are_found_at_half_overlap_by_the_best_detection():
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    found = Agreement()
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 44, 44], [40, 40, 50, 50]]
    found.add(truth, [0, 1, 2], _detections(boxes, [1, 0, 1, 2, 2], [0.5, 0.9, 0.8, 0.9, 0.1]))
    assert (found.objects, found.found, found.right) == (3, 2, 2)
    found.add(truth[:1], [2], _detections(boxes[:1], [1], [0.4]))
    assert found.confused == {(2, 1): 1} and found.images == 2
    assert found.recall == pytest.approx(3 / 4) and found.agreement == pytest.approx(2 / 3)


def test_a_random_teacher_is_warned_of(setup):
    found = examine(setup[0])["teacher's boxes"]
    assert found.status is Status.WARNING and "on 4 training images it finds" in found.text
    assert "--eval-teacher" in found.advice


def test_a_teacher_that_takes_classes_for_others_is_warned_of(setup, monkeypatch):
    def compare(cfg, model):
        found = Agreement(objects=20, found=18, right=6, images=4)
        found.confused.update({(0, 1): 8, (1, 0): 4})
        return found

    monkeypatch.setattr(teacher_checks, "compare", compare)
    found = examine(setup[0])["teacher's boxes"]
    assert found.status is Status.WARNING
    assert "most confused: class 0 -> class 1 (8), class 1 -> class 0 (4)" in found.text
    monkeypatch.setattr(teacher_checks, "LEAST_AGREEMENT", 0.3)
    assert examine(setup[0])["teacher's boxes"].status is Status.OK


def test_unknown_names_are_remarked(setup):
    found = examine(setup[0])["class names"]
    assert found.status is Status.OK and "DISTILL.TEACHER.CLASSES" in found.advice
    opts = ["DISTILL.TEACHER.CLASSES", "['class 0','class 1','class 2','class 3']"]
    assert "same names in both" in examine(setup[0], *opts)["class names"].text
    opts[1] = "['class 1','class 0','class 2','class 3']"
    assert examine(setup[0], *opts)["pair"].status is Status.ERROR


def test_features_alone_need_no_names(setup):
    found = examine(setup[0], "DISTILL.LOSSES", "['feature']")["class names"]
    assert "no enabled loss compares" in found.text


def test_a_teacher_that_fails_is_an_error_of_its_own(setup, monkeypatch):
    def compare(cfg, model):
        raise KeyError("proposals")

    monkeypatch.setattr(teacher_checks, "compare", compare)
    found = examine(setup[0])["teacher's boxes"]
    assert found.status is Status.ERROR and "KeyError: 'proposals'" in found.text


@pytest.mark.parametrize(
    "name, can, reason",
    [
        ("standard", ["feature", "cls", "reg", "masks"], "GeneralizedRCNN has no dense_deltas"),
        ("cascade", ["feature", "cls", "reg", "masks"], "GeneralizedRCNN has no box_bins"),
        ("rpn", ["feature", "masks"], "the teacher's ProposalNetwork has no logits"),
        ("fast", ["feature", "cls", "reg"], "proposals come from the data, not from an RPN"),
        ("semantic", ["feature"], "META_ARCHITECTURE is GeneralizedRCNN for the student and Sem"),
    ],
)
def test_it_says_what_losses_can_read_of_any_teacher(setup, tmp_path, name, can, reason):
    yaml, weights = write_teacher(tmp_path / name, *ARCHITECTURES[name])
    opts = ["DISTILL.TEACHER.CONFIG_FILE", str(yaml), "DISTILL.TEACHER.WEIGHTS", str(weights)]
    found = examine(setup[0], *opts, "DISTILL.LOSSES", "['feature']")["readable"]
    assert found.status is Status.OK
    read, _, unread = found.text.partition("; not ")
    assert [
        x for x in ("feature", "cls", "reg", "masks") if f"{x}')" in read or f"{x})" in read
    ] == can
    assert reason in unread and "set " not in found.text
