# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Box coders against Detectron2's own box losses, and on boxes at the edge of what is a box."""

import pytest
import torch
from detectron2.modeling.box_regression import (
    Box2BoxTransform,
    Box2BoxTransformLinear,
    _dense_box_regression_loss,
)
from detectron2.structures import Boxes

from d2kd.modeling.paired_forward.box_coders import DeltaBoxCoder

LOSSES = ["smooth_l1", "giou", "diou", "ciou"]


def _regions(count=20):
    centres = torch.rand(count, 2) * 100
    half = torch.rand(count, 1) * 20 + 5
    return torch.cat([centres - half, centres + half], dim=1)


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_sum_over_regions_is_detectron2_box_loss(loss_type, weights):
    torch.manual_seed(0)
    transform, regions = Box2BoxTransform(weights=weights), _regions()
    deltas, target = torch.randn(2, 20, 4)
    coder = DeltaBoxCoder(transform, loss_type, smooth_l1_beta=0.3)
    expected = _dense_box_regression_loss(
        [Boxes(regions)],
        transform,
        [deltas[None]],
        [coder.decode(target, regions)],
        torch.ones(1, 20, dtype=torch.bool),
        box_reg_loss_type=loss_type,
        smooth_l1_beta=0.3,
    )
    loss = coder.loss(deltas, target, regions)
    assert loss.shape == (20,)
    torch.testing.assert_close(loss.sum(), expected, rtol=1e-4, atol=0)


def test_decode_inverts_the_transform():
    torch.manual_seed(1)
    regions = _regions()
    boxes = regions + torch.tensor([-3.0, -2.0, 1.0, 4.0])
    for transform in (Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)), Box2BoxTransformLinear()):
        deltas = transform.get_deltas(regions, boxes)
        decoded = DeltaBoxCoder(transform, "giou").decode(deltas, regions)
        torch.testing.assert_close(decoded, boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("transform", [Box2BoxTransform((1.0,) * 4), Box2BoxTransformLinear()])
def test_degenerate_boxes_have_finite_losses_and_gradients(loss_type, transform):
    regions = _regions(4)
    # Collapsed in one or both axes for the two transforms, huge, and equal to the target.
    rows = [[0, 0, -200, -1], [-5, 1, -5, 1], [50, 50, 50, 50], [-200, -200, -200, -200]]
    deltas = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    target = torch.tensor(rows[::-1], dtype=torch.float32)
    coder = DeltaBoxCoder(transform, loss_type)
    loss = coder.loss(deltas, target, regions) + coder.loss(deltas, deltas.detach(), regions)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(deltas.grad).all()


# CIoU's weight of the aspect ratio has no gradient by its definition: gradcheck would see one.
@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou"])
def test_losses_keep_double_precision(loss_type):
    torch.manual_seed(2)
    # Box2BoxTransform decodes in float32 whatever it is given.
    coder, regions = DeltaBoxCoder(Box2BoxTransformLinear(), loss_type, 0.3), _regions(3).double()
    deltas = (torch.rand(3, 4, dtype=torch.float64) + 0.1).requires_grad_()
    target = torch.rand(3, 4, dtype=torch.float64) + 1.5
    assert torch.autograd.gradcheck(lambda x: coder.loss(x, target, regions), deltas)


def test_half_precision_becomes_single():
    coder, regions = DeltaBoxCoder(Box2BoxTransformLinear(), "giou"), _regions(3)
    half = torch.rand(3, 4).bfloat16()
    assert coder.decode(half, regions).dtype == torch.float32
    torch.testing.assert_close(coder.decode(half, regions), coder.decode(half.float(), regions))


@pytest.mark.parametrize("loss_type", LOSSES)
def test_no_regions_at_all(loss_type):
    deltas = torch.zeros(0, 4, requires_grad=True)
    coder = DeltaBoxCoder(Box2BoxTransform((1.0,) * 4), loss_type)
    loss = coder.loss(deltas, torch.zeros(0, 4), torch.zeros(0, 4))
    assert loss.shape == (0,) and loss.requires_grad
    assert coder.decode(deltas, torch.zeros(0, 4)).shape == (0, 4)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="ciou"):
        DeltaBoxCoder(Box2BoxTransform((1.0,) * 4), "l2")
