# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The regression loss: gates, TAR's normaliser, LD by loops, precision, no positives."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from d2kd.losses.regression import RegressionLoss, accepted_regions


def build(gate="student", distance="box_loss", temperature=10.0, weight=1.0):
    return RegressionLoss(weight=weight, gate=gate, distance=distance, temperature=temperature)


def iou(a, b):
    """IoU of two boxes (x1, y1, x2, y2)."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def accepted_by_loops(step, gate):
    """1 for each region whose teacher box beats the rival's, else 0."""
    regions, truths = step.regions.tolist(), step.region_gt_boxes.tolist()
    student, teacher = step.student.deltas.tolist(), step.teacher.deltas.tolist()
    accepted = []
    for region, truth, d_s, d_t in zip(regions, truths, student, teacher):
        box_t = [r + d for r, d in zip(region, d_t)]
        box_s = [r + d for r, d in zip(region, d_s)]
        rival = {"student": box_s, "proposal": region, "none": truth}[gate]
        accepted.append(float(gate == "none" or iou(box_t, truth) > iou(rival, truth)))
    return np.array(accepted)


@pytest.mark.parametrize("gate", ["student", "proposal", "none"])
def test_gates_match_loops(make_step, gate):
    step = make_step(regions=40)
    accepted = accepted_regions(step, gate)
    np.testing.assert_array_equal(accepted, accepted_by_loops(step, gate))
    assert not accepted.requires_grad
    assert 0 < accepted.sum() < 40 or gate == "none"


def test_gates_differ(make_step):
    step = make_step(regions=40)
    assert not torch.equal(accepted_regions(step, "student"), accepted_regions(step, "proposal"))


def test_a_teacher_no_better_than_the_student_is_not_accepted(make_step):
    step = make_step()
    step = dataclasses.replace(step, teacher=step.student)
    assert accepted_regions(step, "student").sum() == 0
    assert build("student")(step).total.item() == 0


@pytest.mark.parametrize("gate", ["student", "proposal", "none"])
def test_tar_box_term_is_divided_by_all_positives(make_step, gate):
    step = make_step(regions=12)
    student, teacher = step.student.deltas.detach().numpy(), step.teacher.deltas.numpy()
    per_region = [sum(abs(s - t)) for s, t in zip(student, teacher)]
    expected = 3.0 * sum(accepted_by_loops(step, gate) * per_region) / 12
    assert build(gate, weight=3.0)(step).total.item() == pytest.approx(expected, rel=1e-6)


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


@pytest.mark.parametrize("gate", ["none", "student"])
@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_ld_matches_loops_over_the_released_sum(make_step, gate, temperature):
    step = make_step(regions=12, activation="sigmoid")
    student, teacher = step.student.box_bins.detach().numpy(), step.teacher.box_bins.numpy()
    logits, accepted = step.student.logits.detach().numpy(), accepted_by_loops(step, gate)
    total = 0.0
    for i in range(12):
        score = max(1 / (1 + math.exp(-z)) for z in logits[i])
        for edge in range(4):
            p = softmax(student[i, edge] / temperature)
            q = softmax(teacher[i, edge] / temperature)
            kl = sum(q[e] * math.log(q[e] / p[e]) for e in range(5))
            total += accepted[i] * score * temperature**2 * kl / 5 / 4
    # The released weight is 0.25 for the sum over two images, as many as this step has.
    loss = build(gate, "distribution_kl", temperature, weight=0.5)(step).total
    assert loss.item() == pytest.approx(0.25 * total, rel=1e-6)


def test_ld_does_not_push_the_scores_that_weigh_it(make_step):
    step = make_step(activation="sigmoid")
    build("none", "distribution_kl")(step).total.backward()
    assert step.student.logits.grad is None
    assert step.student.box_bins.grad.abs().max() > 0


@pytest.mark.parametrize(
    "distance, name", [("box_loss", "deltas"), ("distribution_kl", "box_bins")]
)
def test_gradients(make_step, distance, name):
    step = make_step(activation="sigmoid")
    loss = build("none", distance)

    def of_boxes(boxes):
        student = dataclasses.replace(step.student, **{name: boxes})
        return loss(dataclasses.replace(step, student=student)).total

    assert gradcheck(of_boxes, getattr(step.student, name))


@pytest.mark.parametrize(
    "distance, name", [("box_loss", "deltas"), ("distribution_kl", "box_bins")]
)
@pytest.mark.parametrize("gate", ["student", "proposal", "none"])
def test_no_positives_gives_an_attached_zero(make_step, distance, name, gate):
    step = make_step(regions=0, activation="sigmoid")
    loss = build(gate, distance)(step).total
    loss.backward()
    assert loss.item() == 0
    assert getattr(step.student, name).grad.shape[0] == 0


@pytest.mark.parametrize("gate", ["student", "proposal"])
def test_nothing_accepted_gives_an_attached_zero(make_step, gate):
    step = make_step()
    far = dataclasses.replace(step.teacher, deltas=torch.full((6, 4), 1e4).double())
    loss = build(gate)(dataclasses.replace(step, teacher=far)).total
    loss.backward()
    assert loss.item() == 0
    assert (step.student.deltas.grad == 0).all()


def test_degenerate_boxes_are_never_accepted(make_step):
    step = make_step()
    # Every box shrinks to a point: IoU 0 / 0.
    flat = dataclasses.replace(step.teacher, deltas=-step.regions)
    step = dataclasses.replace(step, teacher=flat, region_gt_boxes=torch.zeros(6, 4).double())
    assert accepted_regions(step, "student").sum() == 0
    assert build("student")(step).total.item() == 0


@pytest.mark.parametrize("distance", ["box_loss", "distribution_kl"])
def test_autocast_and_half_precision_inputs_are_computed_in_float32(make_step, distance):
    step = make_step(dtype=torch.bfloat16, activation="sigmoid")

    def single(who):
        fields = {name: getattr(who, name).float() for name in ("logits", "deltas", "box_bins")}
        return dataclasses.replace(who, **fields)

    loss = build("none", distance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(step).total
    expected = loss(
        dataclasses.replace(step, student=single(step.student), teacher=single(step.teacher))
    ).total
    assert value.dtype in (torch.float32, torch.float64)
    assert value.item() == expected.item() > 0


def test_the_box_coder_is_called_outside_of_autocast(make_step):
    class Coder:
        def decode(self, deltas, regions):
            assert not torch.is_autocast_enabled("cpu")
            return regions + deltas

        def loss(self, deltas, target_deltas, regions):
            assert not torch.is_autocast_enabled("cpu")
            return (deltas - target_deltas).abs().sum(dim=1)

    step = dataclasses.replace(make_step(), box_coder=Coder())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert build("student")(step).total >= 0


def test_requires_is_what_the_teacher_must_compute():
    assert build("student").requires == build("none").requires == {"deltas"}
    assert build("none", "distribution_kl").requires == {"box_bins"}
    assert build("student", "distribution_kl").requires == {"box_bins", "deltas"}


def test_distribution_kl_of_detectors_without_bins_names_the_key(make_step):
    step = make_step()
    step = dataclasses.replace(step, teacher=dataclasses.replace(step.teacher, box_bins=None))
    with pytest.raises(ValueError, match="DISTILL.REG.DISTANCE"):
        build("none", "distribution_kl")(step)


@pytest.mark.parametrize("wrong", [{"gate": "teacher"}, {"distance": "squared"}])
def test_wrong_settings_are_refused_when_it_is_built(wrong):
    with pytest.raises(ValueError, match="must be one of"):
        build(**wrong)
