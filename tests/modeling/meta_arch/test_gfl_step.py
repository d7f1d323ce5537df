# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A training step of GFL: its losses against numpy, their gradients, autocast."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from torch import nn

from d2kd.modeling.meta_arch.gfl import gfl
from tests.common.tiny_gfl import build_gfl, head_outputs, make_batch, spread_gfl


@pytest.fixture
def model():
    return spread_gfl()


def _numpy_losses(model, batch):
    """Equation 8 of the paper, an anchor at a time, and the sum of the positives' scores."""
    with torch.no_grad():
        maps, (logits, bins) = head_outputs(model, batch)
        anchors = model.anchor_generator(maps)
        all_labels, all_boxes = model.label_anchors(anchors, [x["instances"] for x in batch])
    strides = np.concatenate([[s] * len(a) for s, a in zip((8, 16, 32, 64, 128), anchors)])
    centres = Boxes.cat(anchors).get_centers().double().numpy()
    cls, divisor, box_terms, dfl_terms, weights = 0.0, 0, [], [], []
    for n, labels in enumerate(all_labels):
        z = np.concatenate([x[n].double().flatten(1).numpy() for x in logits], axis=1)
        p = np.concatenate([x[n].double().flatten(1).numpy() for x in bins], axis=1)
        for i, label in enumerate(labels.tolist()):
            target = np.zeros(5)
            s = 1 / (1 + np.exp(-z[:, i]))
            if label < 5:
                g = all_boxes[n][i].double().numpy()
                target[label], giou, dfl = _positive_terms(p[:, i], strides[i], centres[i], g)
                weights.append(s.max())
                box_terms.append(1 - giou)
                dfl_terms.append(dfl)
            entropy = -target * np.log(s) - (1 - target) * np.log(1 - s)
            cls += (np.abs(target - s) ** 2 * entropy).sum()
        divisor += max(int((labels < 5).sum()), 1)
    weights = np.array(weights)
    total = max(weights.sum(), 1)
    losses = {
        "loss_cls": cls / divisor,
        "loss_box_reg": 2 * (weights * box_terms).sum() / total,
        "loss_dfl": 0.25 * (weights * dfl_terms).sum() / total,
    }
    return losses, weights.sum()


def _positive_terms(bins, stride, centre, truth):
    """IoU and GIoU of the expected box, and the cross entropy of its edges' distributions."""
    q = np.exp(bins.reshape(4, 17))
    q /= q.sum(axis=1, keepdims=True)
    x, y = centre
    left, top, right, bottom = stride * (q @ np.arange(17))
    overlaps = _iou_and_giou(np.array([x - left, y - top, x + right, y + bottom]), truth)
    wanted = np.array([x - truth[0], y - truth[1], truth[2] - x, truth[3] - y]) / stride
    k = wanted.astype(int)
    entropy = [
        -(k[e] + 1 - wanted[e]) * np.log(q[e, k[e]]) - (wanted[e] - k[e]) * np.log(q[e, k[e] + 1])
        for e in range(4)
    ]
    return (*overlaps, np.mean(entropy))


def _iou_and_giou(a, b):
    area = lambda x: max(x[2] - x[0], 0) * max(x[3] - x[1], 0)  # noqa: E731
    both = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    union = area(a) + area(b) - both
    return both / union, both / union - (hull - union) / hull


TWO = [[10, 12, 60, 90], [30, 40, 120, 100]]


# An image without a positive counts as one in the class loss's divisor.
@pytest.mark.parametrize("boxes", [(TWO, [[5, 5, 40, 30]]), (TWO, [], []), ([], [])])
@pytest.mark.parametrize("bias, unnormalised", [(0.0, False), (-8.0, True)])
def test_losses_equal_a_numpy_reference(model, bias, unnormalised, boxes):
    # With the low bias the positives' scores sum to less than 1, and the sum counts as 1.
    nn.init.constant_(model.head.cls_score.bias, bias)
    nn.init.normal_(model.head.cls_score.weight, std=0.1)
    batch = make_batch(boxes)
    losses, (expected, score_sum) = model(batch), _numpy_losses(model, batch)
    assert (score_sum < 1) == (unnormalised or not any(boxes))
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-4), name


def test_loss_weights_and_beta_are_read(model):
    batch, before = make_batch(), {}
    before = {k: v.item() for k, v in model(batch).items()}
    model.box_reg_loss_weight, model.dfl_loss_weight = 6.0, 1.0
    after = {k: v.item() for k, v in model(batch).items()}
    assert after["loss_cls"] == before["loss_cls"]
    assert after["loss_box_reg"] == pytest.approx(3 * before["loss_box_reg"])
    assert after["loss_dfl"] == pytest.approx(4 * before["loss_dfl"])
    settings = {"MODEL.GFL.QFL_BETA": 1.0, "MODEL.GFL.BBOX_REG_LOSS_WEIGHT": 1.0}
    settings.update({"MODEL.GFL.DFL_LOSS_WEIGHT": 0.5, "MODEL.GFL.ATSS_TOPK": 4})
    built = build_gfl(**settings)
    values = (built.qfl_beta, built.box_reg_loss_weight, built.dfl_loss_weight, built.atss_topk)
    assert values == (1.0, 1.0, 0.5, 4)


def test_normalisers_are_means_over_the_processes(model, monkeypatch):
    batch = make_batch()
    alone = model(batch)
    monkeypatch.setattr(gfl, "differentiable_all_reduce", lambda x: 5 * x)
    monkeypatch.setattr(gfl.comm, "get_world_size", lambda: 2)
    for name, value in model(batch).items():
        torch.testing.assert_close(value, alone[name] * 2 / 5)


@pytest.mark.parametrize("boxes", [([], []), ([], [[5, 5, 40, 30]]), ([[6, 6, 7, 7]], [])])
def test_every_parameter_has_a_finite_gradient_with_few_or_no_boxes(model, boxes):
    losses = model(make_batch(boxes))
    sum(losses.values()).backward()
    assert all(torch.isfinite(x) for x in losses.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if not any(boxes):
        assert losses["loss_cls"] > 0
        assert losses["loss_box_reg"] == losses["loss_dfl"] == 0


def test_a_training_step_under_bfloat16_autocast(model):
    batch = make_batch()
    nn.init.normal_(model.head.cls_score.weight, std=0.05)
    nn.init.normal_(model.head.bbox_pred.weight, std=0.05)
    reference = model(batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head_outputs(model, batch)[1][0][0].dtype == torch.bfloat16
        losses = model(batch)
    before = model.head.scales.detach().clone()
    sum(losses.values()).backward()
    optimizer.step()
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(reference[name].item(), rel=0.05)
    assert all(torch.isfinite(x).all() for x in model.parameters())
    assert (model.head.scales != before).any()
