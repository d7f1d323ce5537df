# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Distances against loops in numpy, their scale, gradients and constant maps."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from d2kd.losses import DISTANCE_REGISTRY, absolute, channel_kl, pearson, squared

ALL = [distance for _, distance in DISTANCE_REGISTRY]


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64).unbind(0)


def mean_over_channels(student, teacher, cost):
    """``cost`` of two numbers, averaged over channels by loops."""
    n, c, h, w = student.shape
    result = np.zeros((n, h, w))
    for index in np.ndindex(n, h, w):
        for channel in range(c):
            at = (index[0], channel, *index[1:])
            result[index] += cost(student[at].item(), teacher[at].item()) / c
    return result


def test_squared_and_absolute_match_loops(maps):
    np.testing.assert_allclose(
        squared(*maps), mean_over_channels(*maps, lambda s, t: (s - t) ** 2), atol=1e-12
    )
    np.testing.assert_allclose(
        absolute(*maps), mean_over_channels(*maps, lambda s, t: abs(s - t)), atol=1e-12
    )


def test_pearson_is_one_minus_the_correlation(maps):
    student, teacher = maps
    correlations = [
        np.corrcoef(student[:, c].flatten(), teacher[:, c].flatten())[0, 1] for c in range(3)
    ]
    loss = pearson(student, teacher).mean().item()
    assert loss == pytest.approx(1 - np.mean(correlations), abs=1e-7)
    # Blind to each channel's offset and scale.
    assert pearson(5 * student + 2, teacher).mean().item() == pytest.approx(loss, abs=1e-7)
    assert pearson(-teacher, teacher).mean().item() == pytest.approx(2)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_kl_matches_loops(maps, temperature):
    student, teacher = (m.numpy() / temperature for m in maps)
    expected = 0.0
    for n, c in np.ndindex(2, 3):
        z_t = sum(math.exp(v) for v in teacher[n, c].flatten())
        z_s = sum(math.exp(v) for v in student[n, c].flatten())
        for at in np.ndindex(4, 5):
            p = math.exp(teacher[n, c][at]) / z_t
            expected += p * math.log(p / (math.exp(student[n, c][at]) / z_s))
    expected *= temperature**2 / (2 * 3)
    assert channel_kl(*maps, temperature=temperature).mean().item() == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("distance", ALL)
def test_gradients(maps, distance):
    student, teacher = maps
    assert gradcheck(lambda x: distance(x, teacher), student.clone().requires_grad_())


@pytest.mark.parametrize("distance", ALL)
def test_shape_and_zero_between_equal_maps(maps, distance):
    cost = distance(maps[0], maps[0].clone())
    assert cost.shape == (2, 4, 5)
    assert cost.abs().max() < 1e-12


@pytest.mark.parametrize("distance", ALL)
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (1, 3, 1, 1)])
def test_constant_maps_have_finite_values_and_gradients(distance, size):
    for student, teacher in (
        (torch.full(size, 3.7), torch.randn(size)),
        (torch.randn(size), torch.full(size, 3.7)),
        (torch.zeros(size), torch.zeros(size)),
    ):
        student.requires_grad_()
        cost = distance(student, teacher).mean()
        cost.backward()
        assert cost.isfinite()
        assert student.grad.isfinite().all()
        assert student.grad.abs().max() < 1e4


def test_a_distance_registers_under_its_name(monkeypatch):
    monkeypatch.setattr(DISTANCE_REGISTRY, "_obj_map", dict(DISTANCE_REGISTRY))

    @DISTANCE_REGISTRY.register()
    def nothing(student, teacher):
        return 0 * squared(student, teacher)

    assert DISTANCE_REGISTRY.get("nothing") is nothing
    with pytest.raises(KeyError, match="nowhere"):
        DISTANCE_REGISTRY.get("nowhere")
