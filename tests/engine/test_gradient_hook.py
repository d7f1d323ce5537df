# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The gradient hook: what it measures, when, how it scales, and what a resumed run continues."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from d2kd.engine import DistillTrainer, build_distill_hooks
from d2kd.engine.gradient_hook import GradientHook
from d2kd.structures import DetectorOutputs, LossTerms
from tests.common.helpers import distill_cfg, plain_cfg
from tests.common.resumed_runs import (
    differences,
    final_state,
    make_cfg,
    new_seed,
    register_mixed,
    resume_from,
    start,
    write_images,
)

SHARES = {"feature": 2.0, "cls": 0.5}


def _hook(shares=SHARES, period=5, factor=1.0):
    hook = GradientHook(lambda progress: factor, period, shares)
    hook.trainer = SimpleNamespace(iter=0, max_iter=10, storage=EventStorage())
    return hook


def _step(slopes, factor=1.0):
    """Losses whose gradients at one feature of 2 cells are of these norms, and the step.

    The detection losses pull at the first cell; a distillation loss at both alike.
    """
    x = torch.zeros(1, 1, 1, 2, requires_grad=True)
    terms = {
        name: LossTerms(factor * slope * x.sum() / 2**0.5, {"p2": torch.ones(())})
        for name, slope in slopes.items()
        if name != "detection"
    }
    losses = {"loss_cls": slopes["detection"] * x[..., 0].sum()}
    return losses, terms, SimpleNamespace(student=DetectorOutputs({"p2": x})), x


def _scales(hook, slopes, factor=1.0):
    """The scale of each loss, by its gradient."""
    losses, terms, step, x = _step(slopes, factor)
    found = hook(losses, terms, step)
    return {
        name: torch.autograd.grad(value.total, x)[0].norm().item() / (slopes[name] * factor or 1.0)
        for name, value in found.items()
    }


SLOPES = {"detection": 3.0, "feature": 30.0, "cls": 0.3}


def test_each_loss_gets_its_share_of_the_detection_losses_gradient():
    scales = _scales(_hook(), SLOPES)
    assert scales == pytest.approx({"feature": 2 * 3 / 30, "cls": 0.5 * 3 / 0.3})


def test_the_share_follows_the_schedule():
    # The hook of each loss has scaled it by a quarter already: the norms at factor 1 are the same.
    scales = _scales(_hook(factor=0.25), SLOPES, factor=0.25)
    assert scales == pytest.approx({"feature": 2 * 3 / 30, "cls": 0.5 * 3 / 0.3})


def test_terms_per_level_are_scaled_too():
    losses, terms, step, _ = _step(SLOPES)
    found = _hook()(losses, terms, step)
    assert found["feature"].per_level["p2"].item() == pytest.approx(0.2)


def test_without_shares_losses_stay_as_they_are_and_both_are_logged():
    hook = _hook(shares=None)
    losses, terms, step, _ = _step(SLOPES)
    assert hook(losses, terms, step) is terms
    hook.after_step()
    found = {name: value for name, (value, _) in hook.trainer.storage.latest().items()}
    assert found == pytest.approx(
        {
            "distill_gradient/feature_ratio": 10.0,
            "distill_gradient/cls_ratio": 0.1,
            "distill_gradient/feature_cosine": 0.5**0.5,
            "distill_gradient/cls_cosine": 0.5**0.5,
        }
    )


def test_a_step_without_a_measurement_logs_nothing():
    hook = _hook()
    _scales(hook, SLOPES)
    hook.after_step()
    hook.trainer.iter, hook.trainer.storage = 1, EventStorage(1)
    _scales(hook, SLOPES)
    hook.after_step()
    assert hook.trainer.storage.latest() == {}


def test_with_shares_the_ratio_is_that_of_the_scaled_loss():
    hook = _hook(factor=0.5)
    losses, terms, step, _ = _step(SLOPES, 0.5)
    hook(losses, terms, step)
    hook.after_step()
    found = hook.trainer.storage.latest()
    assert found["distill_gradient/feature_ratio"][0] == pytest.approx(2.0 * 0.5)
    assert found["distill_gradient/feature_scale"][0] == pytest.approx(0.2)


def test_it_measures_every_period_and_keeps_a_running_mean():
    hook = _hook()
    _scales(hook, SLOPES)
    for hook.trainer.iter in (1, 4):
        assert _scales(hook, {**SLOPES, "feature": 300.0})["feature"] == pytest.approx(0.2)
    hook.trainer.iter = 5
    mean = 30 + 0.25 * (300 - 30)
    assert _scales(hook, {**SLOPES, "feature": 300.0})["feature"] == pytest.approx(6 / mean)


def test_of_several_batches_in_an_iteration_the_first_is_measured():
    hook = _hook()
    _scales(hook, SLOPES)
    assert _scales(hook, {**SLOPES, "feature": 300.0})["feature"] == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [0.0, float("inf")])
def test_a_gradient_that_says_nothing_changes_nothing(bad):
    hook = _hook(period=1)
    losses, terms, step, _ = _step({**SLOPES, "cls": 0.0})
    assert hook(losses, terms, step)["cls"].per_level["p2"] == 0, "not seen yet"
    hook.trainer.iter = 1
    before = _scales(hook, SLOPES)
    assert before["cls"] == pytest.approx(5.0), "the first that is seen counts in full"
    hook.trainer.iter = 2
    losses, terms, step, _ = _step({**SLOPES, "cls": bad})
    hook(losses, terms, step)
    hook.trainer.iter, hook.period = 3, 100
    assert _scales(hook, SLOPES) == pytest.approx(before)


def test_a_factor_of_0_is_not_measured_and_the_next_is():
    hook = _hook(factor=0.0)
    assert _scales(hook, SLOPES, 0.0) == {"feature": 0, "cls": 0}
    hook.schedule, hook.trainer.iter = lambda progress: 0.5, 1
    assert _scales(hook, SLOPES, 0.5) == pytest.approx({"feature": 0.2, "cls": 5.0})


def test_ratios_do_not_depend_on_the_scale_of_half_precision():
    hook = _hook()
    scaled = []
    scaler = SimpleNamespace(scale=lambda loss: scaled.append(loss) or 1024 * loss)
    hook.trainer._trainer = SimpleNamespace(grad_scaler=scaler)
    assert _scales(hook, SLOPES) == pytest.approx({"feature": 0.2, "cls": 5.0})
    assert len(scaled) == 3


def test_state_is_the_norms_by_which_losses_are_scaled():
    hook = _hook()
    assert hook.state_dict() == {}
    _scales(hook, SLOPES)
    other = _hook()
    other.load_state_dict(hook.state_dict())
    other.trainer.iter = 1
    assert _scales(other, {**SLOPES, "feature": 7.0})["feature"] == pytest.approx(0.2)
    unscaled = _hook(shares=None)
    _scales(unscaled, SLOPES)
    assert unscaled.state_dict() == {}


def test_a_run_that_goes_on_without_shares_leaves_the_losses_as_they_are():
    hook, unscaled = _hook(), _hook(shares=None)
    _scales(hook, SLOPES)
    unscaled.load_state_dict(hook.state_dict())
    assert _scales(unscaled, SLOPES) == pytest.approx({"feature": 1.0, "cls": 1.0})


def _built(*opts):
    hooks = build_distill_hooks(plain_cfg(*opts))
    return [(x.period, x.shares) for x in hooks if isinstance(x, GradientHook)]


def test_keys_make_the_hook():
    assert _built() == []
    assert _built("DISTILL.LOG_GRADIENTS", 7) == [(7, None)]
    opts = ["DISTILL.BALANCE", "gradient", "DISTILL.BALANCE_PERIOD", 3, "DISTILL.CLS.SHARE", 0.7]
    opts += ["DISTILL.FEATURE.SHARE", 6.0, "DISTILL.REG.SHARE", 0.1]
    assert _built(*opts) == [(3, {"feature": 6.0, "cls": 0.7, "reg": 0.1})]
    assert _built(*opts, "DISTILL.LOSSES", ["cls"]) == [(3, {"cls": 0.7})]


@pytest.mark.usefixtures("train_set")
def test_logging_leaves_the_training_as_it_is(teacher_files, tmp_path):
    ends = []
    for name, period in (("off", 0), ("on", 1)):
        folder = str(tmp_path / name)
        cfg = distill_cfg(teacher_files, "OUTPUT_DIR", folder, "DISTILL.LOG_GRADIENTS", period)
        start(cfg, 1).train()
        ends.append(final_state(tmp_path / name)["model"])
    assert differences(*ends) == []
    assert "distill_gradient/reg_cosine" in (tmp_path / "on" / "metrics.json").read_text()


@pytest.mark.parametrize("period", [2, 3])
def test_a_balanced_run_resumes_bit_equal(teacher_files, tmp_path, period):
    images = tmp_path / "images"
    images.mkdir()
    write_images(images)
    register_mixed(images)
    opts = ["SOLVER.MAX_ITER", 6, "DISTILL.BALANCE", "gradient", "DISTILL.BALANCE_PERIOD", period]
    whole = tmp_path / "whole"
    start(make_cfg(teacher_files, whole, *opts), 1).train()
    killed = tmp_path / "killed"
    # Before iteration 4, which is measured with a period of 2 and not with one of 3.
    resume_from(whole / "model_0000003.pth", killed)
    start(make_cfg(teacher_files, killed, *opts), new_seed()).train()
    assert final_state(whole)["trainer"]["hooks"]["GradientHook"]["norms"].shape == (4,)
    assert differences(final_state(killed), final_state(whole)) == []


def test_a_balanced_run_needs_weights_above_0(teacher_files):
    cfg = distill_cfg(teacher_files, "DISTILL.BALANCE", "gradient", "DISTILL.CLS.WEIGHT", 0.0)
    with pytest.raises(ValueError, match="DISTILL.CLS.WEIGHT is 0: set it to 1.0"):
        DistillTrainer.build_model(cfg)
