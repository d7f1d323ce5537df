# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The doctor's steps: they move nothing, end in time, and say what a schedule takes."""

import math
import time

import pytest
import torch

from d2kd.doctor import Finding, Status, diagnose, run
from d2kd.doctor.step_budget import StepBudget
from d2kd.doctor.step_checks import check_memory, check_time
from d2kd.doctor.trial_steps import TrialResult, run_steps
from d2kd.modeling import Distiller
from tests.common.helpers import distill_cfg, plain_cfg


def _run_steps(teacher_files, budget, *opts):
    cfg = distill_cfg(teacher_files, *opts)
    model = Distiller(cfg).train()
    return model, lambda: run_steps(cfg, model, budget)


@pytest.mark.parametrize("weight, steps", [(1.0, 3), (3.4e38, 1)])
def test_steps_move_no_weight_and_end_at_a_bad_loss(train_set, teacher_files, weight, steps):
    opts = ["DISTILL.CLS.WEIGHT", weight, "SOLVER.WEIGHT_DECAY", 0.1]
    model, tried = _run_steps(teacher_files, StepBudget(steps=2, images=1), *opts)
    before = [p.clone() for p in model.parameters()]
    trial = tried()
    assert all(map(torch.equal, before, model.parameters()))
    assert len(trial.losses) == steps and trial.finite == (weight == 1)
    assert (len(trial.seconds), trial.shrink) == (max(steps - 1, 1), 2)


@pytest.mark.parametrize(
    "left, asked, steps, images, kept",
    [
        # All of each batch where there is time, and the single image that warmed up is no batch.
        (math.inf, {}, 4, 2, 5),
        (1000.0, {}, 4, 2, 4),
        # No time: the first step of one image has to do, unless more was asked for.
        (-1.0, {}, 1, 1, 1),
        (-1.0, {"steps": 2}, 2, 1, 3),
        (-1.0, {"images": 0}, 1, 2, 1),
        (-1.0, {"images": 2, "steps": 1}, 1, 2, 2),
    ],
)
def test_steps_and_images_fit_the_time(train_set, teacher_files, left, asked, steps, images, kept):
    budget = StepBudget(**asked, until=time.perf_counter() + left)
    trial = _run_steps(teacher_files, budget)[1]()
    assert (len(trial.seconds), trial.used, len(trial.losses)) == (steps, images, kept)
    assert trial.batch == 2 and {len(names) for names in trial.images} == {images}
    assert trial.warm == (kept > 1)


def test_the_budget_follows_the_time_left(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 10.0)
    budget = StepBudget(until=50.0)
    assert budget.first_images(16) == 1
    # 40 seconds for 4 steps: 10 each.
    assert [budget.later_images(16, x) for x in (0.1, 1.0, 3.0, 30.0)] == [16, 10, 3, 1]
    assert budget.goes_on(40.0) and not budget.goes_on(41.0)
    assert StepBudget(images=3, until=50.0).later_images(16, 30.0) == 3
    assert StepBudget(images=0, until=50.0).first_images(16) == 16


def test_a_gpu_is_given_whole_batches_whatever_the_time(setup, monkeypatch):
    seen = []

    def note(cfg, model, budget):
        seen.append(budget)
        raise RuntimeError("enough")

    monkeypatch.setattr(run, "run_steps", note)
    monkeypatch.setattr(run, "check_device", lambda cfg: (cfg, Finding(Status.OK, "device", "")))
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(run, "_is_cpu", lambda cfg, device=device: device == "cpu")
        diagnose(setup[0])
    assert seen[0].until < math.inf and seen[1].until == math.inf


def test_time_for_the_schedule():
    trial = TrialResult(
        seconds=[2.0, 2.0, 9.0], plain_seconds=[1.0], loading=[5.0], batch=16, used=8
    )
    cfg = plain_cfg("SOLVER.MAX_ITER", 1800, "DATALOADER.NUM_WORKERS", 1)
    finding = check_time(cfg, trial)
    assert "4.00 s per iteration, 2.00 s without distillation: 2.0 h and 1.0 h" in finding.text
    assert "measured on 3 steps of 8 of 16 images and scaled up" in finding.text
    assert check_memory(trial).text.endswith("with 8 of 16 images")
    assert finding.status is Status.WARNING and "NUM_WORKERS from 1 to 2" in finding.advice
    cfg.DATALOADER.NUM_WORKERS = 2
    assert check_time(cfg, trial).status is Status.OK
    trial.warm, trial.used = False, 16
    assert "on the first step alone, which is the slowest, of all 16" in check_time(cfg, trial).text
