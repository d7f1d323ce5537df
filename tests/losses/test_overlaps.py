# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Losses between boxes against hand-computed areas; finite and differentiable on flat boxes."""

import math

import pytest
import torch
from fvcore.nn import giou_loss as fvcore_giou_loss
from torch.autograd import gradcheck

from d2kd.losses.overlaps import giou_loss, iou_loss


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float64)


# Two boxes, their intersection, union and hull.
PAIRS = [
    ((0, 0, 4, 4), (2, 2, 6, 6), 4, 28, 36),
    ((0, 0, 4, 4), (0, 0, 4, 4), 16, 16, 16),
    ((0, 0, 2, 2), (6, 0, 8, 2), 0, 8, 16),
    ((0, 0, 8, 8), (2, 2, 4, 4), 4, 64, 64),
]


@pytest.mark.parametrize("a, b, intersection, union, hull", PAIRS)
def test_closed_forms(a, b, intersection, union, hull):
    giou = intersection / union - (hull - union) / hull
    assert giou_loss(boxes(a), boxes(b)).item() == pytest.approx(1 - giou, abs=1e-6)
    iou = -math.log(max(intersection / union, 1e-6))
    assert iou_loss(boxes(a), boxes(b)).item() == pytest.approx(iou, abs=1e-6)


def test_giou_is_fvcores():
    generator = torch.Generator().manual_seed(0)
    low, size = (torch.rand(2, 50, 2, generator=generator).double() * 10 for _ in range(2))
    a, b = torch.cat([low, low + size + 0.1], dim=2)
    torch.testing.assert_close(giou_loss(a, b), fvcore_giou_loss(a, b), rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", [giou_loss, iou_loss])
def test_gradients(loss):
    a = boxes((0, 0, 4, 4.5), (1, 1, 7, 3)).requires_grad_()
    assert gradcheck(lambda x: loss(x, boxes((2, 2.5, 6, 6), (0, 0, 5, 2))), a)


@pytest.mark.parametrize("loss", [giou_loss, iou_loss])
def test_boxes_without_area_are_finite(loss):
    a = boxes((3, 3, 3, 3), (0, 0, 4, 0), (0, 0, 1, 1)).float().requires_grad_()
    values = loss(a, boxes((3, 3, 3, 3), (0, 0, 4, 4), (9, 9, 9, 9)).float())
    values.sum().backward()
    assert values.isfinite().all() and a.grad.isfinite().all()
