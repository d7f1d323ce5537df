# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The maps that are drawn are those that the losses compute with."""

import pytest
import torch

from d2kd.visualize.level_maps import feature_maps, level_masks

LEVELS = ["p2", "p3", "p4", "p5", "p6"]


@pytest.mark.parametrize("detector", ["GeneralizedRCNN", "RetinaNet"])
def test_maps_of_all_images_make_up_the_feature_loss(take_step, detector):
    distiller, batch, step = take_step(detector, DISTILL__FEATURE__WEIGHT=0.5)
    losses = distiller.distill_losses
    images = range(len(batch))
    distances = [feature_maps(losses, step, i).distance for i in images]
    masks = [level_masks(losses, step, i)["gaussian (feature)"] for i in images]
    total = 0.0
    for level in LEVELS:
        weighed = sum((m[level] * d[level]).sum() for m, d in zip(masks, distances))
        total += weighed / sum(m[level].sum() for m in masks).clamp(min=1)
    torch.testing.assert_close(0.5 * total, losses["feature"](step).total)


def test_energy_is_the_mean_square_after_the_adapter(take_step):
    distiller, _, step = take_step()
    adapters = distiller.distill_losses["feature"].adapters
    found = feature_maps(distiller.distill_losses, step, 1)
    assert list(found.student) == list(found.teacher) == LEVELS
    assert found.name == "squared" and found.adapted
    for level in LEVELS:
        adapted = adapters[level](step.student.features[level][1:2])[0]
        torch.testing.assert_close(found.student[level], (adapted**2).mean(dim=0))
        teacher = step.teacher.features[level][1]
        torch.testing.assert_close(found.teacher[level], (teacher**2).mean(dim=0))


def test_no_maps_without_a_feature_loss(take_step):
    distiller, _, step = take_step(DISTILL__LOSSES=["cls", "reg"])
    assert feature_maps(distiller.distill_losses, step, 0) == ({}, {}, {}, "", False)
    assert level_masks(distiller.distill_losses, step, 0) == {}


def test_uniform_is_no_mask(take_step):
    distiller, _, step = take_step(DISTILL__FEATURE__MASK="uniform")
    assert level_masks(distiller.distill_losses, step, 0) == {}


def test_losses_with_one_mask_share_it(take_step):
    keys = dict(DISTILL__FEATURE__MASK="richness", DISTILL__CLS__WHERE="richness")
    distiller, _, step = take_step("RetinaNet", **keys)
    ((name, maps),) = level_masks(distiller.distill_losses, step, 1).items()
    assert name == "richness (feature, cls)"
    for level in LEVELS:
        best = step.teacher.dense_logits[level][1].amax(dim=0).sigmoid()
        torch.testing.assert_close(maps[level], best)


def test_weights_of_anchors_are_drawn_by_cell(take_step):
    keys = dict(DISTILL__REG__WHERE="teacher_score", DISTILL__REG__GATE="none")
    keys |= dict(DISTILL__REG__DISTANCE="giou", DISTILL__LOSSES=["reg"])
    distiller, _, step = take_step("RetinaNet", **keys)
    ((name, maps),) = level_masks(distiller.distill_losses, step, 0).items()
    assert name == "teacher_score (reg)" and list(maps) == LEVELS
    for level in LEVELS:
        best = step.teacher.dense_logits[level][0].amax(dim=0).sigmoid()
        inside = maps[level] > 0
        assert inside.any() and maps[level].shape == best.shape
        assert (maps[level] <= best + 1e-6).all(), "an ignored anchor may have the best score"
        assert torch.isclose(maps[level], best).float().mean() > 0.5
