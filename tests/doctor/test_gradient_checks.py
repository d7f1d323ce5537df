# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Gradients of the losses in the doctor: at the start, and at a checkpoint of the run."""

import math
import time

import pytest
import torch

from d2kd.doctor import Status, diagnose, trial_steps
from d2kd.doctor.gradient_checks import check_gradient_shares
from d2kd.doctor.step_budget import StepBudget
from d2kd.doctor.trial_steps import TrialResult, run_steps
from d2kd.modeling import Distiller
from tests.common.examine import examine
from tests.common.helpers import distill_cfg, plain_cfg


def test_the_suggested_weight_brings_the_norm_to_the_share(setup):
    share = ("DISTILL.CLS.SHARE", "0.25")
    advice = examine(setup[0], *share, "DISTILL.CLS.WEIGHT", "3.0")["gradient cls"].advice
    assert advice.endswith("would make it 0.25, DISTILL.CLS.SHARE")
    weight = advice.split("WEIGHT ")[1].split(" ")[0]
    again = examine(setup[0], *share, "DISTILL.CLS.WEIGHT", f"{float(weight)}")["gradient cls"]
    assert float(again.text.split(" x")[0]) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(
    "steps, status, words",
    [
        ([(2.0, 0.5), (4.0, 0.1)], Status.OK, "3 x that of the detection losses .* cosine +0.30"),
        # A batch without a positive says nothing.
        ([(2.0, 0.5), (0.0, math.nan)], Status.OK, "1 x that .* cosine +0.50"),
        ([(2.0, -0.5)], Status.WARNING, "cosine -0.50"),
        ([(0.0, math.nan)], Status.WARNING, "no gradient"),
        ([(math.inf, math.nan)], Status.WARNING, "no gradient"),
    ],
)
def test_means_and_what_is_a_warning(steps, status, words):
    trial = TrialResult(gradients=[{"reg": step} for step in steps])
    (finding,) = check_gradient_shares(plain_cfg(), trial)
    assert finding.status is status
    assert all(word in finding.text for word in words.split(" .* "))
    if status is Status.OK:
        assert "DISTILL.REG.WEIGHT" in finding.advice
        (silent,) = check_gradient_shares(plain_cfg(), trial, started=False)
        assert silent.advice == ""


def test_measuring_is_not_part_of_the_step(train_set, teacher_files, monkeypatch):
    def slowly(*args):
        time.sleep(2.0)
        return products(*args)

    products = trial_steps.gradient_products
    monkeypatch.setattr(trial_steps, "gradient_products", slowly)
    cfg = distill_cfg(teacher_files)
    trial = run_steps(cfg, Distiller(cfg).train(), StepBudget(steps=1, images=1))
    assert len(trial.gradients) == 2 and trial.measuring > 2.0 > trial.seconds[0]


@pytest.fixture(scope="module")
def checkpoint(teacher_files, tmp_path_factory):
    """A checkpoint of the set-up's run, without its data."""
    folder = tmp_path_factory.mktemp("run")
    model = Distiller(distill_cfg(teacher_files))
    torch.manual_seed(5)
    student = {name: torch.rand_like(x.float()) for name, x in model.student.state_dict().items()}
    # Through an adapter of zeros the feature loss does not reach the student.
    losses = {name: 0 * x for name, x in model.distill_losses.state_dict().items()}
    path = folder / "model_0000002.pth"
    torch.save({"model": student, "distill_losses": losses}, path)
    return path


def _without(checkpoint, tmp_path, name):
    content = torch.load(checkpoint)
    if name in content:
        del content[name]
    else:
        del content["model"][name]
    torch.save(content, tmp_path / "cut.pth")
    return tmp_path / "cut.pth"


def test_a_checkpoint_is_measured_too(setup, checkpoint):
    found = diagnose(setup[0], (), batches=1, weights=str(checkpoint))
    names = [finding.check for finding in found]
    assert names.count("gradient cls") == names.count("ratio cls") == 2
    at = names.index("checkpoint")
    assert found[at].status is Status.OK and names.index("gradient cls") < at
    first, second = (x for x in found if x.check == "gradient cls")
    assert first.text != second.text
    features = [x for x in found if x.check == "gradient feature"]
    assert ["no gradient" in x.text for x in features] == [False, True], "the run's adapters count"


@pytest.mark.parametrize(
    "name, status, words",
    [
        ("distill_losses", Status.WARNING, "has no adapters"),
        ("backbone.fpn_output2.weight", Status.ERROR, "lacks 1 of the student's tensors"),
        (None, Status.ERROR, "absent.pth is not there"),
    ],
)
def test_a_checkpoint_that_does_not_fit(setup, checkpoint, tmp_path, name, status, words):
    path = _without(checkpoint, tmp_path, name) if name else tmp_path / "absent.pth"
    found = diagnose(setup[0], (), batches=1, weights=str(path))
    (finding,) = (x for x in found if x.check == "checkpoint")
    assert finding.status is status and words in finding.text
    again = [x.check for x in found].count("gradient cls") == 2
    assert again == (status is not Status.ERROR)
