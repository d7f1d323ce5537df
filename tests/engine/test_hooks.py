# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The hooks alone: what they return, log, and bind to."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from d2kd.engine import DistillLossHook, LossRatioHook, build_distill_hooks
from d2kd.structures import LossTerms
from tests.common.helpers import plain_cfg


def _loss_hook(factor, iteration=3, max_iter=10):
    asked = []
    hook = DistillLossHook("cls", lambda progress: asked.append(progress) or factor)
    hook.trainer = SimpleNamespace(iter=iteration, max_iter=max_iter)
    return hook, asked


def test_scales_and_logs():
    hook, asked = _loss_hook(0.25)
    with EventStorage(3) as storage:
        terms = hook(lambda step: LossTerms(step * 2, {"p3": step}), torch.tensor(6.0))
        assert terms == LossTerms(torch.tensor(3.0), {"p3": torch.tensor(1.5)})
        assert storage.latest() == {"loss_weight/cls": (0.25, 3)}
    assert asked == [0.3]


def test_at_factor_zero_every_parameter_stays_in_the_graph():
    adapter = torch.nn.Linear(2, 2)
    hook, _ = _loss_hook(0.0)
    with EventStorage():
        loss = hook(lambda step: LossTerms(adapter(step).sum(), {}), torch.ones(1, 2)).total
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in adapter.parameters())


@pytest.mark.parametrize(
    "factors, over_at",
    [([1, 1, 1], None), ([0, 1, 1], None), ([1, 0, 1], None), ([0, 1, 0], 2), ([0, 0, 0], 0)],
)
def test_says_when_its_loss_stays_0(factors, over_at):
    model = SimpleNamespace(
        register_loss_hook=lambda *_: None, finish_loss=lambda n: said.append(n)
    )
    hook = DistillLossHook("cls", lambda progress: factors[round(3 * progress)])
    hook.trainer = SimpleNamespace(model=model, iter=0, max_iter=3)
    hook.before_train()
    for hook.trainer.iter in range(3):
        said = []
        with EventStorage() as storage:
            hook.before_step()
            over = over_at is not None and hook.trainer.iter >= over_at
            assert said == (["cls"] if over else [])
            assert storage.latest() == ({"loss_weight/cls": (0.0, 0)} if over else {})


def test_has_no_state_of_its_own():
    hooks = build_distill_hooks(plain_cfg())
    assert [h.state_dict() for h in hooks] == [{}] * 4
    assert [h.name for h in hooks[:3]] == ["feature", "cls", "reg"]
    hooks = build_distill_hooks(plain_cfg("DISTILL.LOSSES", ["reg"]))
    assert [type(h) for h in hooks] == [DistillLossHook, LossRatioHook]


def _ratios(iteration, max_iter=100, **losses):
    hook = LossRatioHook(["feature", "cls"])
    with EventStorage(iteration) as storage:
        storage.put_scalars(**losses)
        storage.put_scalar("loss_weight/feature", 100.0)
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=max_iter, storage=storage)
        hook.after_step()
        return {k: v for k, (v, _) in storage.latest().items() if "ratio" in k}


@pytest.mark.parametrize("iteration, written", [(18, False), (19, True), (39, True), (99, True)])
def test_ratio_to_the_sum_of_the_detection_losses(iteration, written):
    losses = {"loss_cls": 1.0, "loss_rpn_loc": 3.0, "total_loss": 16.0}
    found = _ratios(iteration, loss_distill_feature=10.0, loss_distill_cls=2.0, **losses)
    assert found == ({"loss_ratio/feature": 2.5, "loss_ratio/cls": 0.5} if written else {})


def test_the_last_iteration_is_written_as_well():
    losses = {"loss_cls": 1.0, "loss_distill_feature": 1.0}
    assert _ratios(4, max_iter=5, **losses) == {"loss_ratio/feature": 1.0}


def test_no_ratio_where_nothing_was_logged():
    assert _ratios(19) == {}
    assert _ratios(19, loss_cls=0.0, loss_distill_feature=1.0) == {}
