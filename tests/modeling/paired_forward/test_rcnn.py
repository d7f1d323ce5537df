# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The paired forward of two-stage detectors: stock losses, one pass, rows of the same regions."""

import copy

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage

from d2kd.modeling import FrozenTeacher
from d2kd.modeling.paired_forward.rcnn import forward_pair_rcnn
from d2kd.modeling.paired_forward.registry import RequiredOutputs
from tests.common.helpers import LEVELS, K, build_pair, count_calls, make_batch, run

EVERYTHING = frozenset({"features", "dense_logits", "logits", "deltas"})
AGNOSTIC = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
NO_BOXES = pytest.param(([], []), id="no boxes")
ONE_EMPTY = pytest.param(([], [[30, 20, 60, 44]]), id="one image without boxes")
BOTH = pytest.param(([[8, 12, 50, 60]], [[30, 20, 60, 44]]), id="boxes in both")


def _observe(student, teacher, batch, requires=EVERYTHING, proposals="student", seed=5):
    torch.manual_seed(seed)
    with EventStorage():
        return forward_pair_rcnn(
            student, teacher, batch, RequiredOutputs(frozenset(requires), proposals)
        )


@pytest.mark.parametrize("opts", [[], AGNOSTIC], ids=["class-specific", "class-agnostic"])
@pytest.mark.parametrize("boxes", [BOTH, ONE_EMPTY, NO_BOXES])
def test_losses_and_gradients_are_stock(opts, boxes):
    stock, student, teacher = build_pair(*opts)
    batch = make_batch(boxes)
    expected = run(stock, batch)
    losses, _ = _observe(student, teacher, batch)
    assert list(losses) == list(expected)
    assert all(torch.equal(losses[k], expected[k]) for k in expected)
    for values in (losses, expected):
        sum(values.values()).backward()
    for ours, theirs in zip(student.parameters(), stock.parameters()):
        assert ours.grad is theirs.grad is None or torch.equal(ours.grad, theirs.grad)


def test_student_heads_run_once():
    _, student, teacher = build_pair()
    parts = student.backbone, student.proposal_generator.rpn_head, student.roi_heads.box_head
    calls = count_calls(*parts, student.roi_heads.box_predictor)
    _observe(student, teacher, make_batch())
    assert [len(seen) for seen in calls] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "requires, proposals, runs",
    [
        ({"features"}, "student", (0, 0, 0)),
        ({"features", "dense_logits"}, "student", (5, 0, 0)),
        ({"logits"}, "student", (0, 0, 1)),
        ({"deltas"}, "student", (0, 0, 1)),
        ({"features"}, "union", (5, 5, 0)),
        (EVERYTHING, "union", (5, 5, 1)),
    ],
)
def test_teacher_runs_only_what_is_read(requires, proposals, runs):
    _, student, teacher = build_pair()
    rpn, heads = teacher.model.proposal_generator, teacher.model.roi_heads
    parts = rpn.rpn_head.objectness_logits, rpn.rpn_head.anchor_deltas, heads.box_head
    calls = count_calls(*parts)
    _, step = _observe(student, teacher, make_batch(), requires, proposals)
    assert tuple(len(seen) for seen in calls) == runs
    if runs[2]:
        assert len(calls[2][0][0]) == len(step.regions), "the box head sees positives only"
        assert 0 < len(step.regions) < 32
    assert (step.teacher.logits is None) == (runs[2] == 0)


@pytest.mark.parametrize("opts", [[], AGNOSTIC], ids=["class-specific", "class-agnostic"])
def test_rows_of_both_describe_the_same_positive_region(opts):
    _, student, teacher = build_pair(*opts)
    batch = make_batch()
    _, step = _observe(student, teacher, batch)
    n = len(step.regions)
    assert step.student.logits.shape == step.teacher.logits.shape == (n, K + 1)
    assert step.student.deltas.shape == step.teacher.deltas.shape == (n, 4)
    assert not torch.allclose(step.student.logits, step.teacher.logits)
    # Every region overlaps the box it was matched to, and has its class.
    iou = pairwise_iou(Boxes(step.regions), Boxes(step.region_gt_boxes)).diagonal()
    assert (iou >= 0.5).all()
    truth = {tuple(b): c for x in batch for b, c in _boxes_and_classes(x["instances"])}
    assert step.labels.tolist() == [truth[tuple(b)] for b in step.region_gt_boxes.tolist()]


def _boxes_and_classes(instances):
    return zip(instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist())


@pytest.mark.parametrize("opts", [[], AGNOSTIC], ids=["class-specific", "class-agnostic"])
def test_a_teacher_with_the_student_weights_gives_the_student_rows(opts):
    _, student, _ = build_pair(*opts)
    student.backbone.eval()  # the teacher's normalisation uses running statistics
    for p in student.roi_heads.box_predictor.parameters():
        torch.nn.init.normal_(p, std=0.3)
    teacher = FrozenTeacher(copy.deepcopy(student))
    _, step = _observe(student, teacher, make_batch())
    assert list(step.teacher.features) == list(step.teacher.dense_logits) == LEVELS
    for field in ("features", "dense_logits"):
        ours, theirs = getattr(step.student, field), getattr(step.teacher, field)
        assert all(torch.equal(ours[level], theirs[level]) for level in LEVELS)
    for field in ("logits", "deltas"):
        ours, theirs = getattr(step.student, field), getattr(step.teacher, field)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_teacher_answers_are_detached_and_the_student_ones_are_not():
    _, student, teacher = build_pair()
    _, step = _observe(student, teacher, make_batch(), proposals="union")
    for outputs, attached in ((step.student, True), (step.teacher, False)):
        tensors = [*outputs.features.values(), *outputs.dense_logits.values()]
        tensors += [outputs.logits, outputs.deltas]
        assert {x.requires_grad for x in tensors} == {attached}
    assert step.strides == dict(zip(LEVELS, (4, 8, 16, 32, 64)))
    assert step.activation == "softmax"
    assert step.gt_image.tolist() == [0, 0, 1]


def test_union_samples_from_both_sets_of_proposals():
    _, student, teacher = build_pair()
    seen, sample = [], student.roi_heads.label_and_sample_proposals
    student.roi_heads.label_and_sample_proposals = lambda p, t: seen.append(p) or sample(p, t)
    _observe(student, teacher, make_batch(), {"features"})
    _observe(student, teacher, make_batch(), {"features"}, "union")
    alone, union = seen
    rpn = teacher.model.proposal_generator
    batch = make_batch()
    images = teacher.model.preprocess_image(batch)
    theirs, _ = rpn(images, teacher.features(batch), None)
    for a, t, u in zip(alone, theirs, union):
        expected = torch.cat([a.proposal_boxes.tensor, t.proposal_boxes.tensor])
        assert torch.equal(u.proposal_boxes.tensor, expected)
        assert len(t) > 0 and not u.objectness_logits.requires_grad


@pytest.mark.parametrize("proposals", ["student", "union"])
@pytest.mark.parametrize("boxes", [ONE_EMPTY, NO_BOXES])
def test_images_without_ground_truth(boxes, proposals):
    _, student, teacher = build_pair()
    losses, step = _observe(student, teacher, make_batch(boxes), proposals=proposals)
    count = sum(map(len, boxes))
    assert len(step.gt_boxes) == len(step.gt_image) == count
    assert set(step.gt_image.tolist()) == ({1} if count else set())
    assert (len(step.regions) > 0) == (count > 0)
    assert len(step.region_gt_boxes) == len(step.teacher.logits) == len(step.regions)
    (sum(losses.values()) + step.student.logits.sum() + step.student.deltas.sum()).backward()
    grads = [p.grad for p in student.parameters() if p.requires_grad]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
