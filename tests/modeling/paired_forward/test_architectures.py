# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Every architecture of Detectron2 as student and as teacher: stock losses, gradients, rows."""

import pytest
import torch
from detectron2.modeling import build_model

from d2kd.modeling import split_losses
from tests.common.architectures import ARCHITECTURES, WITH_BOXES, check_gradients, whole_batch
from tests.common.helpers import build_distiller, distill_cfg, plain_cfg, run, spread, write_teacher

ALL = ["DISTILL.REG.GATE", "none"]
FEATURES = ["DISTILL.LOSSES", ["feature"], "DISTILL.FEATURE.MASK", "uniform"]
LOSSES = {name: ALL if name in WITH_BOXES else FEATURES for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Architecture -> (yaml, checkpoint)."""
    folder = tmp_path_factory.mktemp("teachers")
    return {name: write_teacher(folder / name, *opts) for name, opts in ARCHITECTURES.items()}


def _distiller(teachers, name, *opts, teacher=None):
    cfg = distill_cfg(teachers[teacher or name], *ARCHITECTURES[name], *opts)
    distiller = build_distiller(cfg)
    spread(distiller.student)
    return distiller


def _stock(name, like):
    model = build_model(plain_cfg(*ARCHITECTURES[name])).train()
    model.load_state_dict(like.state_dict(), strict=True)
    return model


@pytest.mark.parametrize("opts", [FEATURES, ALL], ids=["features", "all"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_and_gradients_are_stock(teachers, name, opts):
    if name not in WITH_BOXES and opts is ALL:
        return  # refused when it is built
    distiller = _distiller(teachers, name, *opts)
    stock = _stock(name, distiller.student)
    keys = list(stock.state_dict())
    expected = run(stock, whole_batch())
    losses, distilled = split_losses(run(distiller, whole_batch()))
    assert list(losses) == list(expected) and distilled
    assert all(torch.equal(losses[k], expected[k]) for k in expected)
    sum(expected.values()).backward()
    (sum(losses.values()) + 0 * sum(distilled.values())).backward()
    check_gradients(distiller.student, stock)
    assert list(distiller.student.state_dict()) == keys, "nothing stays in place of a part"
    assert type(distiller.student.backbone) is type(stock.backbone)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_loss_reaches_the_student_and_no_teacher(teachers, name):
    distiller = _distiller(teachers, name, *LOSSES[name])
    _, distilled = split_losses(run(distiller, whole_batch()))
    assert list(distilled) == (["feature", "cls", "reg"] if name in WITH_BOXES else ["feature"])
    for loss_name, loss in distilled.items():
        assert loss.isfinite() and loss > 0, loss_name
        distiller.zero_grad()
        loss.backward(retain_graph=True)
        reached = [k for k, p in distiller.student.named_parameters() if p.grad is not None]
        assert any(k.startswith("backbone.") for k in reached), loss_name
    assert not any(p.grad is not None for p in distiller.teacher.parameters())


@pytest.mark.parametrize("teacher", ["rpn", "cascade"])
def test_an_rpn_alone_learns_the_objectness_of_any_rpn(teachers, teacher):
    richness = ["DISTILL.FEATURE.MASK", "richness", "DISTILL.CLS.WHERE", "richness"]
    opts = ["DISTILL.LOSSES", ["feature", "cls"], *richness]
    distiller = _distiller(teachers, "rpn", *opts, teacher=teacher)
    expected = run(_stock("rpn", distiller.student), whole_batch())
    losses, distilled = split_losses(run(distiller, whole_batch()))
    assert all(torch.equal(losses[k], expected[k]) for k in expected)
    assert list(distilled) == ["feature", "cls"] and all(x > 0 for x in distilled.values())
    distilled["cls"].backward()
    assert distiller.student.proposal_generator.rpn_head.conv.weight.grad.any()
