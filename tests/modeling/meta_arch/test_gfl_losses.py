# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""GFL's losses against numpy references written from the paper's equations."""

import numpy as np
import pytest
import torch

from d2kd.modeling.meta_arch.gfl.losses import (
    distribution_focal_loss,
    expected_distance,
    quality_focal_loss,
)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_expected_distance_equals_numpy():
    bins = np.random.default_rng(0).normal(size=(5, 4, 17)) * 3
    expected = np.zeros((5, 4))
    for (r, edge), _ in np.ndenumerate(expected):
        probabilities = _softmax(bins[r, edge])
        expected[r, edge] = sum(i * probabilities[i] for i in range(17))
    result = expected_distance(torch.from_numpy(bins))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5)


def test_expected_distance_of_one_hot_and_even_distributions():
    one_hot = torch.full((1, 17), -1e4)
    one_hot[0, 11] = 0
    assert expected_distance(one_hot).item() == 11
    assert expected_distance(torch.zeros(17)).item() == pytest.approx(8)


def test_expected_distance_keeps_float32_under_autocast():
    bins = torch.randn(50, 17)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = expected_distance(bins)
    assert torch.equal(result, expected_distance(bins))


def test_expected_distance_of_half_precision_bins_is_float32():
    bins = torch.randn(50, 17).bfloat16()
    assert torch.equal(expected_distance(bins), expected_distance(bins.float()))


@pytest.mark.parametrize("beta", [2.0, 1.5])
def test_quality_focal_loss_equals_numpy(beta):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20, 6)) * 2
    targets = np.where(rng.random((20, 6)) < 0.2, rng.random((20, 6)), 0)
    s = _sigmoid(logits)
    entropy = -((1 - targets) * np.log(1 - s) + targets * np.log(s))
    expected = np.abs(targets - s) ** beta * entropy
    result = quality_focal_loss(torch.from_numpy(logits), torch.from_numpy(targets), beta)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-9)


def test_quality_focal_loss_vanishes_where_the_score_is_the_quality():
    targets = torch.tensor([[0.25, 0.5, 0.9]])
    assert quality_focal_loss(targets.logit(), targets).max() < 1e-12


def test_distribution_focal_loss_equals_numpy():
    rng = np.random.default_rng(2)
    bins, distances = rng.normal(size=(30, 17)) * 2, rng.random(30) * 15.9
    expected = []
    for row, distance in zip(bins, distances):
        left = int(distance)
        p = _softmax(row)
        expected.append(
            -((left + 1 - distance) * np.log(p[left]) + (distance - left) * np.log(p[left + 1]))
        )
    result = distribution_focal_loss(torch.from_numpy(bins), torch.from_numpy(distances))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-9)


def test_distribution_focal_loss_is_cross_entropy_at_a_whole_distance():
    bins = torch.randn(17, 17)
    distances = torch.arange(17.0)
    result = distribution_focal_loss(bins, distances)[:-1]
    expected = torch.nn.functional.cross_entropy(bins, torch.arange(17), reduction="none")[:-1]
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("distance, clamped", [(-3.0, 0.0), (16.0, 15.9), (1e6, 15.9)])
def test_distances_out_of_reach_count_as_the_nearest_in_reach(distance, clamped):
    bins = torch.randn(1, 17)
    result = distribution_focal_loss(bins, torch.tensor([distance]))
    torch.testing.assert_close(result, distribution_focal_loss(bins, torch.tensor([clamped])))


def test_the_least_distribution_focal_loss_has_the_distance_as_its_expectation():
    # The reason for the two bins: the best distribution is the one whose mean is the target.
    distances = torch.tensor([0.3, 4.75, 12.5])
    best = torch.full((3, 17), -1e4)
    below = distances.long()
    best[range(3), below] = (1 - distances % 1).log()
    best[range(3), below + 1] = (distances % 1).log()
    torch.testing.assert_close(expected_distance(best), distances)
    best.requires_grad_()
    (gradient,) = torch.autograd.grad(distribution_focal_loss(best, distances).sum(), best)
    assert gradient.abs().max() < 1e-5


def test_gradients_equal_finite_differences():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.rand(6, 3, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: quality_focal_loss(x, targets), logits)
    bins = torch.randn(4, 17, dtype=torch.float64, generator=generator, requires_grad=True)
    distances = torch.rand(4, dtype=torch.float64, generator=generator) * 16
    assert torch.autograd.gradcheck(lambda x: distribution_focal_loss(x, distances), bins)


def test_expected_distance_gradient_equals_finite_differences():
    bins = np.random.default_rng(4).normal(size=17)
    x = torch.from_numpy(bins).requires_grad_()
    (gradient,) = torch.autograd.grad(expected_distance(x), x)
    step = 1e-5 * np.eye(17)
    mean = lambda b: (_softmax(b) * np.arange(17)).sum(axis=-1)  # noqa: E731
    expected = (mean(bins + step) - mean(bins - step)) / 2e-5
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("logit", [-1e4, 0.0, 1e4])
def test_losses_of_extreme_logits_are_finite(logit):
    logits = torch.full((2, 17), logit, requires_grad=True)
    targets = torch.tensor([0.0, 0.7])[:, None].expand(2, 17)
    loss = quality_focal_loss(logits, targets).sum()
    bins = torch.cat([logits[:, :8], -logits[:, 8:]], dim=1)
    loss = loss + distribution_focal_loss(bins, torch.tensor([2.5, 12.0])).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
