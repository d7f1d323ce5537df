# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Linear CKA: closed forms and an independent reference."""

import math

import numpy as np
import pytest
import torch

from d2kd.doctor.after.feature_similarity import FeatureSimilarity


def _cka(*pairs):
    similarity = FeatureSimilarity()
    for x, y in pairs:
        similarity.add(x, y, torch.ones_like(x[:, 0]))
    return similarity.value


def _maps(channels, seed=0, images=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, channels, 6, 7, generator=generator)


def test_similarity_ignores_rotation_scale_and_shift_of_channels():
    x = _maps(5)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
    assert _cka((x, 3 * torch.einsum("nchw,cd->ndhw", x, turn) + 2)) == pytest.approx(1, abs=1e-6)
    assert _cka((x, x[:, :1])) < 0.9


def test_similarity_is_kornbliths_with_any_channels():
    """By Gram matrices over the locations, the other form of the same."""
    x, y = _maps(3), _maps(8, seed=1) + _maps(3).repeat(1, 3, 1, 1)[:, :8]
    flat = [m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]).double().numpy() for m in (x, y)]
    center = np.eye(len(flat[0])) - 1 / len(flat[0])
    k, m = (center @ f @ f.T @ center for f in flat)
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert _cka((x, y)) == pytest.approx(expected)


def test_similarity_under_a_mask_is_that_of_its_locations():
    x, y = _maps(3), _maps(4, seed=1)
    mask = torch.zeros(2, 6, 7)
    mask[:, :3] = 0.5
    similarity = FeatureSimilarity()
    similarity.add(x, y, mask)
    assert similarity.locations == 2 * 3 * 7
    assert similarity.value == pytest.approx(_cka((x[:, :, :3], y[:, :, :3])))


def test_similarity_of_batches_is_that_of_the_whole():
    x, y = _maps(4, images=4), _maps(6, seed=2, images=4)
    assert _cka((x[:1], y[:1]), (x[1:], y[1:])) == pytest.approx(_cka((x, y)))


def test_similarity_of_a_constant_map_is_not_a_number():
    assert math.isnan(_cka((torch.ones(1, 2, 3, 3), _maps(2, images=1)[..., :3, :3])))
