# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""BCKD's and CrossKD's losses over all locations, each against loops over anchors."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from d2kd.losses.classification import ClassificationLoss
from d2kd.losses.locations import anchor_weights, location_divisor
from d2kd.losses.regression import RegressionLoss

K, A = 3, 2
WEIGHTS = ["disagreement", "teacher_score"]
BOX_DISTANCES = ["box_loss", "giou", "iou", "distribution_kl"]


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def quality(weight=1.0, **kw):
    settings = {"where": "uniform", "distance": "quality_focal", "temperature": 1.0, **kw}
    return ClassificationLoss(weight=weight, **settings)


def of_boxes(where="teacher_score", distance="giou", weight=1.0, **kw):
    settings = {"gate": "none", "temperature": 1.0, **kw}
    return RegressionLoss(weight=weight, where=where, distance=distance, **settings)


def anchors_of(step):
    """level, image, number of the anchor, its logits (K,) in student and teacher; valid ones."""
    for level, (_, valid) in step.anchors.items():
        student, teacher = (
            x.dense_logits[level].detach().numpy() for x in (step.student, step.teacher)
        )
        n_images, _, height, width = student.shape
        for n, y, x, a in np.ndindex(n_images, height, width, A):
            index = (y * width + x) * A + a
            if valid[n, index]:
                channels = slice(a * K, (a + 1) * K)
                yield level, n, index, student[n, channels, y, x], teacher[n, channels, y, x]


def weight_of(kind, s, t):
    if kind == "teacher_score":
        return max(map(sigmoid, t))
    return max(abs(sigmoid(b) - sigmoid(a)) for a, b in zip(s, t))


def overlap_losses(a, b):
    """1 - GIoU and -log IoU of two boxes (x1, y1, x2, y2)."""
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    intersection = max(0, sides[0]) * max(0, sides[1])
    union = area(a) + area(b) - intersection
    hull = math.prod(max(a[i + 2], b[i + 2]) - min(a[i], b[i]) for i in (0, 1))
    iou = intersection / union
    return {"giou": 1 - iou + (hull - union) / hull, "iou": -math.log(max(iou, 1e-6))}


def box_distance(step, distance, level, n, index):
    if distance == "distribution_kl":
        s, t = (x.dense_box_bins[level][n, index].detach() for x in (step.student, step.teacher))
        p, q = (np.exp(x.numpy()) / np.exp(x.numpy()).sum(1, keepdims=True) for x in (s, t))
        return float((q * np.log(q / p)).mean())
    deltas = [
        x.dense_deltas[level][n, index].detach().numpy() for x in (step.student, step.teacher)
    ]
    if distance == "box_loss":
        return float(abs(deltas[0] - deltas[1]).sum())
    region = step.anchors[level].boxes[index].numpy()
    return overlap_losses(*((region + x).tolist() for x in deltas))[distance]


def test_quality_focal_matches_loops(make_step):
    step, expected = make_step(activation="sigmoid"), 0.0
    for _, _, _, s, t in anchors_of(step):
        for a, b in zip(s, t):
            p, q = sigmoid(a), sigmoid(b)
            expected += abs(q - p) * (-q * math.log(p) - (1 - q) * math.log(1 - p))
    loss = quality(weight=0.4)(step)
    assert loss.total.item() == pytest.approx(0.4 * expected / len(step.regions), rel=1e-6)
    assert sum(loss.per_level.values()).item() == pytest.approx(loss.total.item())
    assert list(loss.per_level) == list(step.anchors)


def test_quality_focal_on_positives_is_their_mean(make_step):
    step, expected = make_step(activation="sigmoid"), 0.0
    for s, t in zip(step.student.logits.tolist(), step.teacher.logits.tolist()):
        for a, b in zip(s, t):
            p, q = sigmoid(a), sigmoid(b)
            expected += abs(q - p) * (-q * math.log(p) - (1 - q) * math.log(1 - p))
    loss = quality(where="positives")(step).total
    assert loss.item() == pytest.approx(expected / len(step.regions), rel=1e-6)


@pytest.mark.parametrize("where", WEIGHTS)
@pytest.mark.parametrize("distance", BOX_DISTANCES)
def test_boxes_match_loops(make_step, where, distance):
    step, expected, weights = make_step(), 0.0, 0.0
    for level, n, index, s, t in anchors_of(step):
        weight = weight_of(where, s, t)
        expected += weight * box_distance(step, distance, level, n, index)
        weights += weight
    loss = of_boxes(where, distance, weight=4.0)(step)
    assert loss.total.item() == pytest.approx(4 * expected / len(step.regions), rel=1e-5)
    assert list(loss.per_level) == list(step.anchors)
    loss = of_boxes(where, distance, normalizer="weights")(step).total
    assert loss.item() == pytest.approx(expected / weights, rel=1e-5)


@pytest.mark.parametrize("distance", ["giou", "iou"])
def test_overlaps_on_positives_are_their_mean(make_step, distance):
    step = make_step()
    rows = zip(step.regions.numpy(), step.student.deltas.detach().numpy(), step.teacher.deltas)
    values = [overlap_losses(r + s, r + t.numpy())[distance] for r, s, t in rows]
    loss = of_boxes("positives", distance)(step).total
    assert loss.item() == pytest.approx(np.mean(values), rel=1e-5)


def test_centerness_is_fcos_own(make_step):
    step, total = make_step(), 0.0
    truth = step.regions + torch.tensor([-1.0, -2.0, 3.0, 0.5])
    step = dataclasses.replace(step, region_gt_boxes=truth)
    for (x1, y1, x2, y2), (left, top, right, bottom) in zip(step.regions, truth):
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        across, down = (x - left, right - x), (y - top, bottom - y)
        total += math.sqrt(min(across) / max(across) * min(down) / max(down))
    assert location_divisor(step, "centerness", False).item() == pytest.approx(total)
    assert 0 < total < len(truth)
    ratio = quality(normalizer="centerness")(step).total / quality()(step).total
    assert ratio.item() == pytest.approx(len(truth) / total)
    ratio = of_boxes(normalizer="centerness")(step).total / of_boxes()(step).total
    assert ratio.item() == pytest.approx(len(truth) / total)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_are_detached_and_0_where_ignored(make_step, kind):
    step = make_step()
    weights = anchor_weights(step, "p3", kind)
    assert not weights.requires_grad
    assert torch.equal(weights > 0, step.anchors["p3"].valid) and not (weights > 0).all()


def _replaced(step, field, value):
    student = dataclasses.replace(
        step.student, **{field: {**getattr(step.student, field), **value}}
    )
    return dataclasses.replace(step, student=student)


def test_gradients_of_quality_focal(make_step):
    step = make_step()
    assert gradcheck(
        lambda x: quality()(_replaced(step, "dense_logits", {"p4": x})).total,
        step.student.dense_logits["p4"],
    )


@pytest.mark.parametrize("where", WEIGHTS)
@pytest.mark.parametrize("distance", BOX_DISTANCES)
def test_gradients_of_boxes(make_step, where, distance):
    step = make_step()
    field = "dense_box_bins" if distance == "distribution_kl" else "dense_deltas"
    assert gradcheck(
        lambda x: of_boxes(where, distance)(_replaced(step, field, {"p4": x})).total,
        getattr(step.student, field)["p4"],
    )


@pytest.mark.parametrize("where", WEIGHTS)
def test_boxes_do_not_push_the_scores_that_weigh_them(make_step, where):
    step = make_step()
    of_boxes(where)(step).total.backward()
    assert all(x.grad is None for x in step.student.dense_logits.values())
    assert all(x.grad.abs().max() > 0 for x in step.student.dense_deltas.values())


@pytest.mark.parametrize("normalizer", ["positives", "centerness"])
def test_without_boxes_the_teacher_still_teaches(make_step, normalizer):
    step = make_step(regions=0, boxes=0)
    for loss in (quality(normalizer=normalizer), of_boxes(normalizer=normalizer)):
        total = loss(step).total
        total.backward()
        assert total.isfinite() and total > 0


def test_an_agreeing_teacher_costs_nothing(make_step):
    step = make_step()
    step = dataclasses.replace(step, student=step.teacher)
    assert quality()(step).total.item() == 0
    assert of_boxes("disagreement")(step).total.item() == 0
    assert of_boxes("teacher_score")(step).total.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("distance", BOX_DISTANCES)
def test_autocast_and_half_precision_inputs_are_computed_in_float32(make_step, distance):
    step = make_step(dtype=torch.bfloat16)

    def single(who):
        fields = ("dense_logits", "dense_deltas", "dense_box_bins")
        maps = {f: {k: x.float() for k, x in getattr(who, f).items()} for f in fields}
        return dataclasses.replace(who, **maps)

    exact = dataclasses.replace(step, student=single(step.student), teacher=single(step.teacher))
    for loss in (quality(), of_boxes("disagreement", distance)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(step).total
        assert value.dtype in (torch.float32, torch.float64)
        assert value.item() == loss(exact).total.item() > 0


def test_extreme_logits_stay_finite(make_step):
    step = make_step(dtype=torch.float32)

    def extreme(sign):
        return {
            level: (sign * 300 * x.detach()).half().requires_grad_()
            for level, x in step.student.dense_logits.items()
        }

    student = dataclasses.replace(step.student, dense_logits=extreme(-1))
    teacher = dataclasses.replace(step.teacher, dense_logits=extreme(1))
    loss = quality()(dataclasses.replace(step, student=student, teacher=teacher)).total
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert all(x.grad.isfinite().all() for x in student.dense_logits.values())


def test_requires_is_what_the_teacher_must_compute():
    assert quality().requires == {"dense_logits"}
    assert quality(where="positives").requires == {"logits"}
    assert of_boxes().requires == {"dense_logits", "dense_deltas"}
    assert of_boxes(distance="distribution_kl").requires == {"dense_logits", "dense_box_bins"}
    assert of_boxes("positives").requires == {"deltas"}


@pytest.mark.parametrize(
    "build, wrong, message",
    [
        (quality, {"normalizer": "weights"}, "normalizer must be one of"),
        (of_boxes, {"where": "everywhere"}, "where must be one of"),
        (of_boxes, {"normalizer": "none"}, "normalizer must be one of"),
        (of_boxes, {"gate": "student"}, "DISTILL.REG.GATE is 'student': set it to 'none'"),
    ],
)
def test_wrong_settings_are_refused_when_it_is_built(build, wrong, message):
    with pytest.raises(ValueError, match=message):
        build(**wrong)
