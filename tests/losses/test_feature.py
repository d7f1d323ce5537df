# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The feature loss: TAR's and FRS's formulas by loops, adapters, precision, empty masks."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from d2kd.losses.feature import FeatureLoss
from tests.losses.test_masks import gaussian_by_loops

LEVELS = ("p3", "p4", "p5")


def build(mask="uniform", distance="squared", *, adapters=None, levels=LEVELS, **kw):
    kw = dict(weight=1.0, mask_args={}, distance_args={}, channels="mean") | kw
    adapters = adapters or nn.ModuleDict({level: nn.Identity() for level in levels})
    return FeatureLoss(mask=mask, distance=distance, adapters=adapters, **kw)


def squared_by_loops(step, level, mask):
    """``sum M sum_c (T - S)^2`` of one level."""
    student, teacher = (
        who.features[level].detach().numpy() for who in (step.student, step.teacher)
    )
    total = 0.0
    for n, c, row, column in np.ndindex(*student.shape):
        at = (n, c, row, column)
        total += mask[n, row, column] * (teacher[at] - student[at]) ** 2
    return total


def test_frs_feature_term_matches_its_formula(make_step):
    # Per level divided by the mask's sum over the batch; channels and levels summed.
    step, expected = make_step(), 0.0
    for level, logits in step.teacher.dense_logits.items():
        richness = (1 / (1 + np.exp(-logits.numpy()))).max(axis=1)
        expected += squared_by_loops(step, level, richness) / richness.sum()
    loss = build("richness", channels="sum", weight=0.005)(step).total
    assert loss.item() == pytest.approx(0.005 * expected, rel=1e-6)


def test_tar_feature_term_matches_its_formula(make_step):
    # Mean over channels; the paper's factor 1/2 is left to the weight.
    step, expected = make_step(), 0.0
    for level, feature in step.student.features.items():
        n, c, h, w = feature.shape
        mask = gaussian_by_loops(step.mask_input(level, feature.shape, LEVELS))
        expected += squared_by_loops(step, level, mask) / c / max(1, mask.sum())
    assert build("gaussian", weight=2.0)(step).total.item() == pytest.approx(2 * expected, rel=1e-6)


def test_uniform_mask_gives_the_plain_mean_of_each_level(make_step):
    step = make_step()
    pairs = zip(step.student.features.values(), step.teacher.features.values())
    expected = sum(nn.functional.l1_loss(s, t).item() for s, t in pairs)
    assert build(distance="absolute")(step).total.item() == pytest.approx(expected, rel=1e-6)


def test_only_the_adapters_levels_count(make_step):
    step = make_step()
    parts = [build(levels=(level,))(step).total.item() for level in LEVELS]
    assert build()(step).total.item() == pytest.approx(sum(parts), rel=1e-9)


def test_boxes_belong_to_the_nearest_of_the_compared_levels(make_step):
    # Each box is too small for p5, but there is no finer level.
    step = make_step()
    own = build("gaussian", mask_args={"levels": "own"}, levels=("p5",))(step).total
    assert own.item() == build("gaussian", levels=("p5",))(step).total.item() > 0


def test_parameters_reach_mask_and_distance(make_step):
    step = make_step()
    default = build("gaussian", "channel_kl")(step).total.item()
    warm = build("gaussian", "channel_kl", distance_args={"temperature": 3.0})(step).total.item()
    narrow = build("gaussian", "channel_kl", mask_args={"sigma2": 0.5})(step).total.item()
    assert len({default, warm, narrow}) == 3


@pytest.mark.parametrize("mask", ["uniform", "gaussian", "richness"])
@pytest.mark.parametrize("distance", ["squared", "absolute", "pearson", "channel_kl", "ssim"])
def test_gradients_of_every_combination(make_step, mask, distance):
    step = make_step()
    loss = build(mask, distance, levels=("p4",))

    def of_feature(feature):
        student = dataclasses.replace(step.student, features={"p4": feature})
        return loss(dataclasses.replace(step, student=student)).total

    assert gradcheck(of_feature, step.student.features["p4"])


@pytest.mark.parametrize("distance", ["squared", "absolute", "pearson", "channel_kl", "ssim"])
def test_no_boxes_gives_an_attached_zero(make_step, distance):
    step = make_step(boxes=0, dtype=torch.float32)
    adapters = nn.ModuleDict({level: nn.Conv2d(3, 3, 1) for level in LEVELS})
    loss = build("gaussian", distance, adapters=adapters)(step).total
    loss.backward()
    assert loss.item() == 0
    for tensor in (*adapters.parameters(), *step.student.features.values()):
        assert tensor.grad is not None and (tensor.grad == 0).all()


def test_every_adapter_learns_and_the_teacher_gets_no_gradient(make_step):
    step = make_step(dtype=torch.float32)
    adapters = nn.ModuleDict({level: nn.Conv2d(3, 3, 3, padding=1) for level in LEVELS})
    build(adapters=adapters)(step).total.backward()
    assert all(p.grad.abs().max() > 0 for p in adapters.parameters())
    assert not any(t.requires_grad for t in step.teacher.features.values())


@pytest.mark.parametrize("distance", ["squared", "absolute", "pearson", "channel_kl", "ssim"])
def test_autocast_and_half_precision_inputs_are_computed_in_float32(make_step, distance):
    # ssim and channel_kl would be the first to lose their digits: matrix products, exponentials.
    half = make_step(dtype=torch.bfloat16)
    student, teacher = (
        dataclasses.replace(who, features={k: v.float() for k, v in who.features.items()})
        for who in (half.student, half.teacher)
    )
    single = dataclasses.replace(half, student=student, teacher=teacher)
    loss = build("gaussian", distance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half).total
    assert value.dtype in (torch.float32, torch.float64)
    assert value.item() == loss(single).total.item()


def test_requires_is_what_mask_and_distance_read():
    assert build().requires == {"features"}
    assert build("richness").requires == {"features", "dense_logits"}


def test_maps_of_other_sizes_are_refused_by_level(make_step):
    step = make_step()
    step.teacher.features["p4"] = torch.zeros(2, 3, 4, 6)
    with pytest.raises(ValueError, match="'p4'.*strides, padding"):
        build()(step)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"channels": "max"}, ValueError, "'mean' or 'sum'"),
        ({"mask": "nowhere"}, KeyError, "nowhere"),
        ({"distance": "far"}, KeyError, "far"),
        ({"mask_args": {"sigma": 1}}, ValueError, "uniform has no parameters"),
        ({"distance_args": {"temperature": 1}}, ValueError, "squared has no parameters"),
        ({"adapters": nn.ModuleDict()}, ValueError, "DISTILL.FEATURE.LEVELS"),
    ],
)
def test_wrong_settings_are_refused_when_it_is_built(wrong, error, message):
    settings = dict(mask="uniform", mask_args={}, distance="squared", distance_args={})
    adapters = nn.ModuleDict({"p3": nn.Identity()})
    settings |= dict(weight=1.0, channels="mean", adapters=adapters)
    with pytest.raises(error, match=message):
        FeatureLoss(**(settings | wrong))
