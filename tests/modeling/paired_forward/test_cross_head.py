# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""CrossKD's cross-head: stock losses, one pass of each layer, and gradients through the teacher."""

import copy

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.autograd import gradcheck

from d2kd.losses.classification import ClassificationLoss
from d2kd.losses.regression import RegressionLoss
from d2kd.modeling import Distiller, FrozenTeacher, split_losses
from d2kd.modeling.compatibility import check_pair
from d2kd.modeling.paired_forward import cross_head
from d2kd.modeling.paired_forward.dense import forward_pair_dense
from d2kd.modeling.paired_forward.registry import RequiredOutputs
from d2kd.structures import DetectorOutputs
from d2kd.utils.errors import ConfigError, PairMismatchError
from tests.common.helpers import plain_cfg
from tests.common.tiny_dense import DETECTORS, build_dense, dense_cfg, make_batch

CONVS, LEVELS = 3, 5
CLS = frozenset({"dense_logits"})
BOTH = frozenset({"dense_logits", "dense_deltas"})


def deep(name, norm="GN"):
    """Config keys of heads with CONVS convolutions."""
    return [f"MODEL.{name.upper()}.NUM_CONVS", CONVS, f"MODEL.{name.upper()}.NORM", norm]


def build_pair(name, norm="GN", **kw):
    student, teacher = (build_dense(name, *deep(name, norm), seed=i) for i in (0, 1))
    # So small that the deviations matter, and so that no two channels are alike.
    for layer in (*teacher.head.cls_subnet, *teacher.head.bbox_subnet):
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.08)
            nn.init.normal_(layer.bias, std=0.2)
    return student, FrozenTeacher(teacher, **kw)


def observe(student, teacher, requires=BOTH, num_convs=1, batch=None):
    required = RequiredOutputs(frozenset(requires), "student", num_convs)
    with EventStorage():
        return forward_pair_dense(student, teacher, batch or make_batch(), required)


def build_distiller(student, teacher, num_convs=1):
    losses = {
        "cls": ClassificationLoss(
            weight=1.0, where="uniform", distance="quality_focal", temperature=1.0
        ),
        "reg": RegressionLoss(
            weight=1.0, where="teacher_score", gate="none", distance="giou", temperature=1.0
        ),
    }
    distiller = Distiller(
        student=student,
        teacher=teacher,
        distill_losses=nn.ModuleDict(losses),
        forward_pair=forward_pair_dense,
        cross_head=num_convs,
    ).train()
    for name in losses:
        distiller.register_loss_hook(name, lambda loss, step: loss(step))
    return distiller


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("norm", ["GN", "BN", ""])
@pytest.mark.parametrize("num_convs", [1, CONVS])
def test_losses_gradients_and_statistics_are_stock(name, norm, num_convs):
    student, teacher = build_pair(name, norm)
    stock = copy.deepcopy(student)
    for _ in range(2):
        with EventStorage():
            expected = stock(make_batch())
        losses, _ = observe(student, teacher, num_convs=num_convs)
        assert list(losses) == list(expected)
        assert all(torch.equal(losses[k], expected[k]) for k in losses)
    for values in (losses, expected):
        sum(values.values()).backward()
    for ours, theirs in zip(student.parameters(), stock.parameters()):
        assert ours.grad is theirs.grad is None or torch.equal(ours.grad, theirs.grad)
    ours, theirs = student.state_dict(), stock.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def _through(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def _reference(subnet, teacher_subnet, features, teacher_features, num_convs):
    """The last features of the cross-head branch, by a plain walk over the layers and numpy."""
    walk, done, held = list(subnet), 0, CONVS - num_convs
    start = 0
    while done < held:  # after that many convolutions and their norms, before the activation
        start += 1
        if isinstance(walk[start], nn.ReLU):
            done += 1
            start += done < held
    ours = [_through(walk[:start], x) for x in features]
    theirs = [_through(list(teacher_subnet)[:start], x) for x in teacher_features]
    found = []
    for s, t in zip(ours, theirs):
        s, t = s.detach().double().numpy(), t.detach().double().numpy()
        score = (s - s.mean((0, 2, 3), keepdims=True)) / np.sqrt(
            s.var((0, 2, 3), keepdims=True) + 1e-8
        )
        x = score * t.std((0, 2, 3), keepdims=True) + t.mean((0, 2, 3), keepdims=True)
        found.append(torch.from_numpy(x).float())
    # BatchNorm's levels are told apart by the order of the calls.
    return [_through(list(teacher_subnet)[start:], x) for x in found]


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("num_convs", [1, 2, CONVS])
def test_predictions_match_an_independent_walk(name, num_convs):
    student, teacher = build_pair(name)
    _, step = observe(student, teacher, num_convs=num_convs)
    ours, theirs = (
        [x.features[level] for level in student.head_in_features]
        for x in (step.student, step.teacher)
    )
    head = teacher.model.head
    cls = _reference(student.head.cls_subnet, head.cls_subnet, ours, theirs, num_convs)
    box = _reference(student.head.bbox_subnet, head.bbox_subnet, ours, theirs, num_convs)
    for found, x in zip(step.student.dense_logits.values(), cls):
        torch.testing.assert_close(found, head.cls_score(x), rtol=1e-3, atol=1e-4)
    rows = [head.bbox_pred(x) for x in box]
    if name == "GFL":
        rows = [x * scale for x, scale in zip(rows, head.scales)]
    width = 4 * head.num_bins if name == "GFL" else 4
    (rows,) = student._transpose_dense_predictions([rows], [width])
    if name == "GFL":
        bins = torch.arange(head.num_bins).float()
        rows = [x.unflatten(2, (4, -1)).softmax(3) @ bins for x in rows]
    for found, expected in zip(step.student.dense_deltas.values(), rows):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("norm", ["GN", "BN"])
def test_the_teachers_own_features_give_the_teachers_answers(name, norm):
    _, teacher = build_pair(name, norm)
    # In eval mode, as the teacher is: BatchNorm reads the same statistics.
    student = copy.deepcopy(teacher.model)
    _, step = observe(student, teacher)
    for level, expected in step.teacher.dense_logits.items():
        torch.testing.assert_close(step.student.dense_logits[level], expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            step.student.dense_deltas[level], step.teacher.dense_deltas[level], rtol=1e-3, atol=1e-3
        )
    plain = observe(student, teacher, num_convs=0)[1].teacher
    for level, expected in plain.dense_logits.items():
        torch.testing.assert_close(step.teacher.dense_logits[level], expected)


@pytest.mark.parametrize("name", DETECTORS)
def test_gradients_reach_the_student_through_the_frozen_head(name):
    student, teacher = build_pair(name)
    distiller, before = build_distiller(student, teacher), copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        with EventStorage():
            _, distilled = split_losses(distiller(make_batch()))
        optimizer.zero_grad()
        sum(distilled.values()).backward()
        grads = {k: p.grad for k, p in student.named_parameters() if p.requires_grad}
        reached = {k for k, grad in grads.items() if grad is not None and grad.abs().max() > 0}
        for branch in ("cls_subnet", "bbox_subnet"):  # a convolution, its norm, its activation
            assert {f"head.{branch}.0.weight", f"head.{branch}.3.weight"} <= reached
            assert f"head.{branch}.6.weight" not in reached, "the teacher's takes over"
        assert not reached & {"head.cls_score.weight", "head.bbox_pred.weight"}
        assert "backbone.bottom_up.res5.0.conv1.weight" in reached
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        optimizer.step()
    after = teacher.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_gradcheck_through_alignment_and_layers():
    torch.manual_seed(0)
    _, teacher = build_pair("GFL")
    teacher.double()
    held = [torch.randn(2, 32, 2, 3, dtype=torch.float64, requires_grad=True)]
    statistics = {"p3": torch.rand(2, 32, dtype=torch.float64) + 0.5}
    theirs = DetectorOutputs(cls_statistics=statistics, box_statistics=statistics)

    def predict(x):
        features = cross_head.HeldFeatures([x], [x])
        logits, boxes = cross_head.cross_predictions(teacher, features, theirs, ([], []), 1)
        return logits[0].mean(dim=(2, 3)), boxes[0][:, ::7]

    assert gradcheck(predict, held, atol=1e-4)


def _count_calls(head):
    calls = {}
    for branch in ("cls_subnet", "bbox_subnet"):
        convs = [x for x in getattr(head, branch) if isinstance(x, nn.Conv2d)]
        parts = {f"{branch}.{i}": conv for i, conv in enumerate(convs)}
        for name, part in parts.items():
            part.register_forward_hook(lambda *_, n=name: calls.update({n: calls.get(n, 0) + 1}))
    for name in ("cls_score", "bbox_pred", "ctrness"):
        if hasattr(head, name):
            part = getattr(head, name)
            part.register_forward_hook(lambda *_, n=name: calls.update({n: calls.get(n, 0) + 1}))
    return calls


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("requires", [CLS, BOTH])
def test_no_layer_runs_more_than_the_method_needs(name, requires):
    student, teacher = build_pair(name)
    ours, theirs = _count_calls(student.head), _count_calls(teacher.model.head)
    observe(student, teacher, requires, num_convs=2)
    assert set(ours.values()) == {LEVELS} and len(ours) == 2 * CONVS + 2 + (name == "FCOS")
    expected = {"cls_subnet.0": 1, "cls_subnet.1": 2, "cls_subnet.2": 2, "cls_score": 2}
    if requires == BOTH:
        expected |= {"bbox_subnet.0": 1, "bbox_subnet.1": 2, "bbox_subnet.2": 2, "bbox_pred": 2}
    assert theirs == {part: LEVELS * times for part, times in expected.items()}


@pytest.mark.parametrize("name", DETECTORS)
def test_rows_of_positives_are_those_of_the_cross_head(name):
    student, teacher = build_pair(name)
    requires = {"logits", "deltas"}
    own = observe(student, teacher, requires, num_convs=0)[1]
    crossed = observe(student, teacher, requires)[1]
    assert torch.equal(own.regions, crossed.regions)
    assert not torch.allclose(own.student.logits, crossed.student.logits)
    assert not torch.allclose(own.student.deltas, crossed.student.deltas)
    only = observe(student, teacher, {"logits"})[1]
    assert torch.equal(only.student.deltas, own.student.deltas), "no loss reads the box branch"


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("precision", ["student", "bfloat16", "float32"])
def test_autocast_and_teacher_precision(name, precision):
    student, teacher = build_pair(name, precision=precision)
    distiller = build_distiller(student, teacher)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        _, distilled = split_losses(distiller(make_batch()))
    sum(distilled.values()).backward()
    assert all(x.dtype == torch.float32 and x.isfinite() and x > 0 for x in distilled.values())
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert grads and all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("boxes", [([], []), ([[8, 12, 60, 90]],)])
def test_no_boxes_and_maps_of_one_cell(name, boxes):
    # p7 of a single image is one cell, whose channels have no deviation (and no norm in training).
    student, teacher = build_pair(name, norm="")
    distiller = build_distiller(student, teacher)
    with EventStorage():
        _, distilled = split_losses(distiller(make_batch(boxes)))
    sum(distilled.values()).backward()
    assert all(x.isfinite() and x > 0 for x in distilled.values())
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert grads and all(x.isfinite().all() for x in grads)


def test_a_constant_channel_is_finite():
    x = torch.full((2, 3, 4, 4), 7.0, requires_grad=True)
    aligned = cross_head._align(x, torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]))
    aligned.sum().backward()
    torch.testing.assert_close(aligned.mean((0, 2, 3)), torch.tensor([1.0, 2.0, 3.0]))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("key, value", [("NUM_CONVS", 2), ("MODEL.FPN.OUT_CHANNELS", 64)])
def test_heads_of_another_width_or_depth_are_refused(name, key, value):
    key = key if "." in key else f"MODEL.{name.upper()}.{key}"
    student = dense_cfg(name, *deep(name), "DISTILL.CROSS_HEAD", 1)
    check_pair(student, dense_cfg(name, *deep(name)), BOTH)
    teacher = dense_cfg(name, *deep(name), key, value)
    with pytest.raises(PairMismatchError, match=f"{key} is .* but DISTILL.CROSS_HEAD needs"):
        check_pair(student, teacher, BOTH)
    student.DISTILL.CROSS_HEAD = 0
    check_pair(student, teacher, BOTH)


def test_a_cross_head_that_cannot_be_is_refused():
    teacher = dense_cfg("FCOS", *deep("FCOS"))
    four = dense_cfg("FCOS", *deep("FCOS"), "DISTILL.CROSS_HEAD", 4)
    with pytest.raises(ConfigError, match="MODEL.FCOS.NUM_CONVS is 3: set it to 3 or less"):
        check_pair(four, teacher, BOTH)
    features = ["DISTILL.CROSS_HEAD", 1, "DISTILL.LOSSES", ["feature"]]
    with pytest.raises(ConfigError, match="no loss compares heads: set it to 0"):
        check_pair(dense_cfg("FCOS", *features), teacher, frozenset({"features"}))
    with pytest.raises(ConfigError, match="GeneralizedRCNN has no dense class head: set it to 0"):
        check_pair(plain_cfg("DISTILL.CROSS_HEAD", 1), plain_cfg(), CLS)
    with pytest.raises(TypeError, match="does not know the layers of Linear: set it to 0"):
        cross_head.box_maps(nn.Linear(1, 1), [])
