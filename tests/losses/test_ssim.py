# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""SSIM against torchmetrics and against loops, its options, gradients and awkward maps."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torchmetrics.functional.image import structural_similarity_index_measure

from d2kd.losses.ssim import fused
from d2kd.losses.ssim.distance import SCALINGS, ssim


def random_maps(*size, dtype=torch.float64, seed=0):
    """Student and teacher in [0, 1] that resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.rand(*size, generator=generator, dtype=torch.float64)
    noise = torch.rand(*size, generator=generator, dtype=torch.float64)
    return (0.6 * teacher + 0.4 * noise).to(dtype), teacher.to(dtype)


def ssim_by_loops(x, y, window=11, sigma=1.5, c1=1e-4, c2=9e-4, exponents=(1, 1, 1)):
    """SSIM of two (H, W) maps, cell by cell, with windows cut off and renormalised at borders."""
    half, (height, width) = window // 2, x.shape
    result = np.zeros((height, width))
    for row, column in np.ndindex(height, width):
        cells = [
            (r, c)
            for r in range(max(row - half, 0), min(row + half + 1, height))
            for c in range(max(column - half, 0), min(column + half + 1, width))
        ]
        weights = [
            math.exp(-((r - row) ** 2 + (c - column) ** 2) / (2 * sigma**2)) for r, c in cells
        ]
        a, b = [x[cell] for cell in cells], [y[cell] for cell in cells]
        mu_a, mu_b = np.average(a, weights=weights), np.average(b, weights=weights)
        var_a = np.average((a - mu_a) ** 2, weights=weights)
        var_b = np.average((b - mu_b) ** 2, weights=weights)
        covariance = np.average((a - mu_a) * (b - mu_b), weights=weights)
        root = math.sqrt(var_a * var_b)
        factors = (
            (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1),
            (2 * root + c2) / (var_a + var_b + c2),
            (covariance + c2 / 2) / (root + c2 / 2),
        )
        result[row, column] = np.prod([f**e for f, e in zip(factors, exponents)])
    return result


def test_matches_torchmetrics():
    # torchmetrics reflects at the border and leaves that border out of its map, as we do here.
    student, teacher = random_maps(2, 3, 24, 30, dtype=torch.float32)
    reference = structural_similarity_index_measure(
        student, teacher, data_range=1.0, return_full_image=True
    )[1]
    ours = ssim(student, teacher, scaling="none")[:, 5:-5, 5:-5]
    assert reference.shape[-2:] == (24, 30)
    expected = ((1 - reference.mean(dim=1)) / 2)[:, 5:-5, 5:-5]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("exponents", [(1, 1, 1), (0, 0, 1), (0, 1, 1), (0.5, 2, 1), (1, 0, 0)])
@pytest.mark.parametrize("size", [(13, 15), (4, 6), (1, 1)])
def test_matches_loops_up_to_the_border(exponents, size):
    student, teacher = random_maps(1, 1, *size)
    alpha, beta, gamma = exponents
    ours = ssim(student, teacher, scaling="none", alpha=alpha, beta=beta, gamma=gamma)
    expected = (1 - ssim_by_loops(student[0, 0], teacher[0, 0], exponents=exponents)) / 2
    # Without any variance the floor under the root shows, by half of its 0.2 %.
    np.testing.assert_allclose(ours[0], expected, atol=1e-3 if size == (1, 1) else 1e-6)


def test_window_sigma_and_constants_reach_the_formula():
    student, teacher = (10 * x for x in random_maps(1, 1, 9, 8))
    ours = ssim(student, teacher, scaling="none", window=5, sigma=0.8, k1=0.05, k2=0.1, range=10.0)
    expected = ssim_by_loops(student[0, 0], teacher[0, 0], 5, 0.8, c1=0.25, c2=1.0)
    np.testing.assert_allclose(ours[0], (1 - expected) / 2, atol=1e-9)


def test_product_form_equals_closed_form():
    # An exponent this near to 1 takes the product form.
    student, teacher = random_maps(2, 2, 12, 12)
    product = ssim(student, teacher, alpha=1 + 1e-9)
    torch.testing.assert_close(product, ssim(student, teacher), atol=1e-6, rtol=0)


def test_channels_are_averaged():
    student, teacher = random_maps(2, 3, 12, 14)
    single = [ssim(student[:, c : c + 1], teacher[:, c : c + 1]) for c in range(3)]
    torch.testing.assert_close(ssim(student, teacher), torch.stack(single).mean(dim=0))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaling_shares_minimum_and_maximum_over_its_axes(scaling):
    student, teacher = random_maps(2, 3, 7, 8)
    spread = torch.arange(1.0, 7.0, dtype=torch.float64).view(2, 3, 1, 1)
    student, teacher = student * spread - 2, teacher * spread.flip(0) + 5
    scaled = []
    for x in (student, teacher):
        x = x.clone()
        for n, c in np.ndindex(2, 3):
            group = {"image_channel": x[n, c], "image": x[n], "level": x, "none": None}[scaling]
            low, high = (0, 1) if group is None else (group.min(), group.max())
            scaled.append((x[n, c] - low) / (high - low))
    scaled = torch.stack(scaled).view(2, 2, 3, 7, 8)
    torch.testing.assert_close(
        ssim(student, teacher, scaling=scaling), ssim(*scaled, scaling="none")
    )


def test_scaling_makes_it_blind_to_each_channels_offset_and_scale():
    student, teacher = random_maps(2, 3, 12, 14)
    torch.testing.assert_close(ssim(7 * student - 3, teacher), ssim(student, teacher))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("exponents", [(1, 1, 1), (0.7, 1.3, 1), (0, 0, 1)])
def test_gradients(scaling, exponents):
    student, teacher = random_maps(2, 2, 5, 4)
    alpha, beta, gamma = exponents
    assert gradcheck(
        lambda x: ssim(x, teacher, scaling=scaling, alpha=alpha, beta=beta, gamma=gamma),
        student.requires_grad_(),
    )


def test_no_gradient_reaches_the_teacher():
    student, teacher = random_maps(1, 2, 6, 6)
    teacher.requires_grad_()
    ssim(student.requires_grad_(), teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("exponents", [(1, 1, 1), (0.5, 0.5, 0.5), (0, 0, 1)])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("size", [(12, 14), (3, 2), (1, 1)])
@pytest.mark.parametrize("value", [0.0, 0.5, 1000.0])
def test_constant_maps_have_finite_values_and_gradients(exponents, scaling, size, value):
    alpha, beta, gamma = exponents
    constant, other = torch.full((2, 3, *size), value), torch.rand(2, 3, *size)
    for student, teacher in ((constant, other), (other, constant), (constant, constant)):
        student = student.clone().requires_grad_()
        cost = ssim(student, teacher, scaling=scaling, alpha=alpha, beta=beta, gamma=gamma)
        cost.mean().backward()
        assert cost.isfinite().all()
        assert student.grad.isfinite().all()
        assert student.grad.abs().max() < 1e3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    # Values whose squares overflow float16.
    student, teacher = (1000 * x for x in random_maps(2, 3, 12, 14, dtype=torch.float32))
    student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
    cost = ssim(student, teacher)
    cost.mean().backward()
    assert cost.dtype == torch.float32
    assert torch.equal(cost, ssim(student.float(), teacher.float()))
    assert student.grad.dtype == dtype and student.grad.isfinite().all()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"scaling": "batch"}, "scaling must be one of"),
        ({"window": 10}, "must be odd"),
        ({"alpha": 0, "beta": 0, "gamma": 0}, "an exponent"),
    ],
)
def test_refuses_what_makes_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        ssim(*random_maps(1, 1, 4, 4), **wrong)


@pytest.mark.parametrize("exponents", [(1, 1, 1), (1, 2, 1)])
@pytest.mark.parametrize("size", [(2, 3, 12, 14), (2, 3, 4, 66)])
def test_pieces_and_memory_formats_change_nothing(monkeypatch, size, exponents):
    # Wide maps are smoothed line by line; pieces of one map, of some, and the whole.
    student, teacher = random_maps(*size)
    powers = dict(zip(("alpha", "beta", "gamma"), exponents))
    expected = []
    for x, y in zip(student.numpy().reshape(-1, *size[2:]), teacher.numpy().reshape(-1, *size[2:])):
        scaled = ((v - v.min()) / (v.max() - v.min()) for v in (x, y))
        expected.append((1 - ssim_by_loops(*scaled, window=3, exponents=exponents)) / 2)
    expected = np.mean(np.reshape(expected, size), axis=1)
    whole = student.clone().requires_grad_()
    ssim(whole, teacher, window=3, **powers).square().sum().backward()
    for piece in (1, 3 * size[2] * size[3]):
        monkeypatch.setattr(fused, "_PIECE", piece)
        for layout in (torch.contiguous_format, torch.channels_last):
            x = student.clone(memory_format=layout).requires_grad_()
            ours = ssim(x, teacher.to(memory_format=layout), window=3, **powers)
            np.testing.assert_allclose(ours.detach(), expected, atol=1e-6)
            ours.square().sum().backward()
            torch.testing.assert_close(x.grad, whole.grad)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_gradients_of_wide_maps_in_pieces(monkeypatch, scaling):
    monkeypatch.setattr(fused, "_PIECE", 1)
    student, teacher = random_maps(2, 2, 2, 64)
    student.requires_grad_()
    weights = torch.rand(2, 2, 64, dtype=torch.float64)
    assert gradcheck(
        lambda x: (weights * ssim(x, teacher, scaling=scaling, window=3)).sum(), student
    )


def test_without_gradients_nothing_is_kept_for_them():
    student, teacher = random_maps(1, 2, 6, 6)
    with torch.no_grad():
        value = ssim(student, teacher)
    torch.testing.assert_close(value, ssim(student.requires_grad_(), teacher).detach())
