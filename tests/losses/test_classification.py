# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The classification loss against loops: positives and masks, softmax and sigmoid heads."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from d2kd.losses import MASK_REGISTRY, register_mask, uniform
from d2kd.losses.classification import ClassificationLoss


def build(where="positives", distance="cross_entropy", temperature=1.0, weight=1.0, **kw):
    return ClassificationLoss(
        weight=weight, where=where, distance=distance, temperature=temperature, **kw
    )


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def binary_cost(z_s, z_t, temperature, distance):
    """One student logit against one teacher logit."""
    p, q = sigmoid(z_s / temperature), sigmoid(z_t / temperature)
    cost = -q * math.log(p) - (1 - q) * math.log(1 - p)
    if distance == "kl":
        cost += q * math.log(q) + (1 - q) * math.log(1 - q)
    return cost


def softmax_cost(z_s, z_t, temperature, distance):
    """One row of student logits against one of teacher logits."""
    p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (z_s, z_t))
    cost = 0.0
    for k in range(len(p)):
        cost -= q[k] * math.log(p[k] / q[k] if distance == "kl" else p[k])
    return cost


@pytest.mark.parametrize("distance", ["cross_entropy", "kl"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_positives_match_loops(make_step, distance, temperature, activation):
    step, expected = make_step(activation=activation), 0.0
    rows = step.student.logits.detach().numpy(), step.teacher.logits.numpy()
    for z_s, z_t in zip(*rows):
        if activation == "softmax":
            expected += softmax_cost(z_s, z_t, temperature, distance)
        else:
            expected += sum(binary_cost(a, b, temperature, distance) for a, b in zip(z_s, z_t))
    expected *= 0.5 * temperature**2 / len(step.regions)
    loss = build("positives", distance, temperature, weight=0.5)(step).total
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("distance", ["cross_entropy", "kl"])
def test_frs_head_term_matches_its_formula(make_step, distance):
    # Per level divided by the mask's sum over the batch; channels and levels summed.
    step, expected = make_step(), 0.0
    for level, teacher in step.teacher.dense_logits.items():
        student = step.student.dense_logits[level].detach().numpy()
        n_images, channels, height, width = student.shape
        total = normaliser = 0.0
        for n, row, column in np.ndindex(n_images, height, width):
            z_t = teacher[n, :, row, column].tolist()
            richness = max(map(sigmoid, z_t))
            z_s = student[n, :, row, column]
            total += richness * sum(
                binary_cost(z_s[k], z_t[k], 1, distance) for k in range(channels)
            )
            normaliser += richness
        expected += total / normaliser
    loss = build("richness", distance, weight=0.02)(step).total
    assert loss.item() == pytest.approx(0.02 * expected, rel=1e-6)


@pytest.mark.parametrize("distance", ["cross_entropy", "kl"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_gradients_on_positives(make_step, distance, activation):
    step = make_step(activation=activation)
    loss = build("positives", distance, temperature=2.0)

    def of_logits(logits):
        student = dataclasses.replace(step.student, logits=logits)
        return loss(dataclasses.replace(step, student=student)).total

    assert gradcheck(of_logits, step.student.logits)


@pytest.mark.parametrize("distance", ["cross_entropy", "kl"])
@pytest.mark.parametrize("where", ["uniform", "gaussian", "richness"])
def test_gradients_under_masks(make_step, where, distance):
    step = make_step()
    loss = build(where, distance)

    def of_logits(logits):
        student = dataclasses.replace(step.student, dense_logits={"p4": logits})
        return loss(dataclasses.replace(step, student=student)).total

    assert gradcheck(of_logits, step.student.dense_logits["p4"])


@pytest.mark.parametrize("where", ["positives", "richness"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_kl_is_zero_for_equal_logits(make_step, where, activation):
    step = make_step(activation=activation)
    step = dataclasses.replace(step, student=step.teacher)
    assert build(where, "kl")(step).total.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_no_positives_gives_an_attached_zero(make_step, activation):
    step = make_step(regions=0, activation=activation)
    head = torch.nn.Linear(2, 4).double()
    student = dataclasses.replace(step.student, logits=head(torch.zeros(0, 2).double()))
    loss = build()(dataclasses.replace(step, student=student)).total
    loss.backward()
    assert loss.item() == 0
    assert (head.weight.grad == 0).all() and (head.bias.grad == 0).all()


def test_an_empty_mask_gives_an_attached_zero(make_step):
    step = make_step(boxes=0)
    loss = build("gaussian")(step).total
    loss.backward()
    assert loss.item() == 0
    assert all((z.grad == 0).all() for z in step.student.dense_logits.values())


@pytest.mark.parametrize("where", ["positives", "richness"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("distance", ["cross_entropy", "kl"])
def test_extreme_logits_in_half_precision_stay_finite(make_step, where, activation, distance):
    step = make_step(activation=activation, dtype=torch.float32)

    def extreme(outputs, sign):
        return dataclasses.replace(
            outputs,
            logits=(sign * 300 * outputs.logits.detach()).half().requires_grad_(),
            dense_logits={
                level: (sign * 300 * z.detach()).half().requires_grad_()
                for level, z in outputs.dense_logits.items()
            },
        )

    step = dataclasses.replace(
        step, student=extreme(step.student, -1), teacher=extreme(step.student, 1)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = build(where, distance)(step).total
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss > 0
    tensors = [step.student.logits, *step.student.dense_logits.values()]
    assert all(t.grad.isfinite().all() for t in tensors if t.grad is not None)


@pytest.mark.parametrize("where", ["positives", "richness"])
def test_autocast_and_half_precision_inputs_are_computed_in_float32(make_step, where):
    step = make_step(dtype=torch.bfloat16)

    def single(who):
        dense = {level: z.float() for level, z in who.dense_logits.items()}
        return dataclasses.replace(who, logits=who.logits.float(), dense_logits=dense)

    loss = build(where)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(step).total
    expected = loss(
        dataclasses.replace(step, student=single(step.student), teacher=single(step.teacher))
    ).total
    assert value.dtype == torch.float32
    assert value.item() == expected.item()


def test_requires_is_what_the_teacher_must_compute():
    assert build().requires == {"logits"}
    assert build("richness").requires == build("gaussian").requires == {"dense_logits"}


def test_requires_includes_what_the_mask_reads(monkeypatch):
    monkeypatch.setattr(MASK_REGISTRY, "_obj_map", dict(MASK_REGISTRY))

    @register_mask(requires={"features"})
    def of_features(inputs):
        return uniform(inputs)

    assert build("of_features").requires == {"features", "dense_logits"}


def test_parameters_reach_the_mask(make_step):
    step = make_step()
    assert build("gaussian")(step).total != build("gaussian", mask_args={"sigma2": 0.3})(step).total


def test_dense_logits_of_other_sizes_are_refused_by_level(make_step):
    step = make_step()
    step.teacher.dense_logits["p5"] = torch.zeros(2, 12, 1, 2)
    with pytest.raises(ValueError, match="'p5'.*numbers of outputs"):
        build("uniform")(step)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"distance": "squared"}, ValueError, "'cross_entropy', 'kl'"),
        ({"where": "negatives"}, KeyError, "negatives"),
        ({"where": "gaussian", "mask_args": {"s": 1}}, ValueError, "gaussian has no parameters"),
    ],
)
def test_wrong_settings_are_refused_when_it_is_built(wrong, error, message):
    with pytest.raises(error, match=message):
        build(**wrong)
