# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Everything combines: masks x distances, sets of losses, and detectors, one training step each."""

from itertools import chain, combinations

import pytest
import torch
from detectron2.utils.events import EventStorage

from d2kd.config.defaults import LOSS_NAMES
from d2kd.losses import DISTANCE_REGISTRY, MASK_REGISTRY
from d2kd.losses.classification import DISTANCES as CLS_DISTANCES
from d2kd.losses.regression import DISTANCES as BOX_DISTANCES
from d2kd.losses.regression import WHERE
from d2kd.modeling import Distiller, FrozenTeacher, split_losses
from d2kd.modeling.build_losses import build_distill_losses
from d2kd.modeling.paired_forward.registry import get_paired_forward
from tests.common.helpers import build_pair, plain_cfg
from tests.common.tiny_dense import build_dense, dense_cfg, make_batch

DETECTORS = ["GeneralizedRCNN", "RetinaNet", "FCOS", "GFL"]
MASKS = [name for name, _ in MASK_REGISTRY]
DISTANCES = [name for name, _ in DISTANCE_REGISTRY]
SETS = list(chain.from_iterable(combinations(LOSS_NAMES, n) for n in (1, 2, 3)))


@pytest.fixture(scope="module", params=DETECTORS)
def pair(request):
    """cfg, student and teacher of one detector; steps move the student only."""
    if request.param == "GeneralizedRCNN":
        _, student, teacher = build_pair()
        return plain_cfg(), student, teacher
    student = build_dense(request.param)
    return dense_cfg(request.param), student, FrozenTeacher(build_dense(request.param, seed=1))


def take_step(pair, opts):
    """One SGD step under the losses of ``opts``; what each of the networks was before it."""
    cfg, student, teacher = pair
    cfg = cfg.clone()
    cfg.merge_from_list(opts)
    losses = build_distill_losses(cfg, cfg, student, teacher.model)
    forward_pair = get_paired_forward(cfg)
    distiller = Distiller(
        student=student,
        teacher=teacher,
        distill_losses=losses,
        forward_pair=forward_pair,
        cross_head=cfg.DISTILL.CROSS_HEAD,
    ).train()
    for name in losses:
        distiller.register_loss_hook(name, lambda loss, step: loss(step))
    before = {k: v.detach().clone() for k, v in distiller.named_parameters()}
    with EventStorage():
        found = distiller(make_batch())
    _, distilled = split_losses(found)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    optimizer.zero_grad()
    sum(distilled.values()).backward()
    optimizer.step()
    moved = {k for k, v in distiller.named_parameters() if not torch.equal(v, before[k])}
    return distilled, moved


def check(distilled, moved, names):
    assert list(distilled) == list(names)
    assert all(torch.isfinite(x) for x in distilled.values())
    assert any(name.startswith("student.backbone") for name in moved)
    assert not any(name.startswith("teacher") for name in moved)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_any_mask_with_any_distance(pair, mask, distance):
    feature = ["DISTILL.FEATURE.MASK", mask, "DISTILL.FEATURE.DISTANCE", distance]
    opts = ["DISTILL.LOSSES", ["feature", "cls"], "DISTILL.CLS.WHERE", mask, *feature]
    distilled, moved = take_step(pair, [*opts, "DISTILL.FEATURE.ADAPTER", "3x3"])
    check(distilled, moved, ["feature", "cls"])
    assert distilled["feature"] > 0 and distilled["cls"] > 0
    assert any(name.startswith("distill_losses.feature.adapters") for name in moved)


@pytest.mark.parametrize("where", [x for x in WHERE if x != "positives"])
@pytest.mark.parametrize("distance", BOX_DISTANCES)
def test_any_box_distance_at_all_locations(pair, where, distance):
    detector = pair[0].MODEL.META_ARCHITECTURE
    if detector == "GeneralizedRCNN" or (distance == "distribution_kl" and detector != "GFL"):
        return  # refused when it is built
    opts = ["DISTILL.LOSSES", ["reg"], "DISTILL.REG.WHERE", where, "DISTILL.REG.GATE", "none"]
    distilled, moved = take_step(pair, [*opts, "DISTILL.REG.DISTANCE", distance])
    check(distilled, moved, ["reg"])
    assert distilled["reg"] > 0


@pytest.mark.parametrize("where", ["positives", *MASKS])
def test_quality_focal_everywhere(pair, where):
    if pair[0].MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        return  # refused when it is built
    opts = ["DISTILL.LOSSES", ["cls"], "DISTILL.CLS.WHERE", where]
    distilled, moved = take_step(pair, [*opts, "DISTILL.CLS.DISTANCE", "quality_focal"])
    check(distilled, moved, ["cls"])
    assert distilled["cls"] > 0


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("distance", CLS_DISTANCES)
def test_a_cross_head_under_any_loss(pair, where, distance):
    if pair[0].MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        return  # refused when it is built
    cls = ["DISTILL.CLS.DISTANCE", distance, "DISTILL.CLS.WHERE", "richness"]
    reg = ["DISTILL.REG.WHERE", where, "DISTILL.REG.GATE", "none", "DISTILL.REG.DISTANCE", "giou"]
    opts = ["DISTILL.CROSS_HEAD", 1, "DISTILL.LOSSES", ["feature", "cls", "reg"], *cls, *reg]
    check(*take_step(pair, opts), ["feature", "cls", "reg"])


@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_any_set_of_losses(pair, names):
    gate = ["DISTILL.REG.GATE", "none"]
    check(*take_step(pair, ["DISTILL.LOSSES", list(names), *gate]), names)
