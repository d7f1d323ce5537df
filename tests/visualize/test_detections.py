# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Detections are those of an evaluation, and leave no trace."""

import torch

from d2kd.utils.rng_state import get_random_state
from d2kd.visualize.detections import detect, kept_tensors, true_boxes
from tests.common.helpers import build_pair, make_batch
from tests.common.resumed_runs import differences


def test_detections_are_those_of_the_detector_in_eval_mode():
    student, _, teacher = build_pair("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    student.backbone.bottom_up.stem.eval()
    modes = [x.training for x in student.modules()]
    before, state = get_random_state(), {k: x.clone() for k, x in student.state_dict().items()}
    sample = make_batch()[1]
    ours, theirs = detect(student, sample), detect(teacher, sample)
    assert [x.training for x in student.modules()] == modes and True in modes and False in modes
    assert differences(get_random_state(), before) == []
    assert differences(student.state_dict(), state) == []
    for model, found in ((student.eval(), ours), (teacher.model, theirs)):
        with torch.no_grad():
            expected = model([sample])[0]["instances"]
        assert len(expected) and torch.equal(found.boxes, expected.pred_boxes.tensor)
        assert torch.equal(found.classes, expected.pred_classes)
        assert torch.equal(found.scores, expected.scores)


def test_the_teacher_sees_its_own_order_of_channels():
    _, _, teacher = build_pair("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    sample = make_batch()[0]
    swapped = detect(teacher, {**sample, "image": sample["image"].flip(0)})
    teacher.swap_channels = True
    assert torch.equal(detect(teacher, sample).scores, swapped.scores)


def test_a_detector_without_boxes_gives_none():
    class Segmentor(torch.nn.Module):
        def forward(self, batch):
            return [{"sem_seg": torch.zeros(3, 4, 4)} for _ in batch]

    assert detect(Segmentor(), make_batch()[0]) is None


def test_ground_truth_of_a_sample_without_annotations_is_empty():
    assert len(true_boxes({}).boxes) == 0
    assert len(true_boxes(make_batch()[0]).boxes) == 2


def test_running_statistics_are_put_back():
    student, _, _ = build_pair()
    norm = next(x for x in student.modules() if isinstance(x, torch.nn.BatchNorm2d))
    before = norm.running_mean.clone()
    with kept_tensors(student):
        norm.running_mean.add_(1)
    assert torch.equal(norm.running_mean, before)
