# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The step at learning rate 0 does everything that a training step does, and moves no weight."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from d2kd.engine.trial_step import TrialStep
from tests.common.helpers import build_distiller, distill_cfg, make_batch

OPTIMIZERS = [["SOLVER.OPTIMIZER", "SGD"], ["SOLVER.OPTIMIZER", "ADAMW"]]


@pytest.fixture
def build(teacher_files):
    """Options -> (step, copies of all weights)."""

    def get(*opts):
        cfg = distill_cfg(teacher_files, *opts)
        model = build_distiller(cfg)
        return TrialStep(cfg, model), [p.clone() for p in model.parameters()]

    return get


@pytest.mark.parametrize("opts", OPTIMIZERS, ids=["SGD", "ADAMW"])
def test_no_weight_moves_and_the_optimizer_steps(build, opts):
    step, before = build("SOLVER.WEIGHT_DECAY", 0.1, *opts)
    for _ in range(2):
        step(make_batch())
    assert all(map(torch.equal, before, step.model.parameters()))
    state = step._optimizer.state_dict()["state"]
    trained = [p for p in step.model.parameters() if p.requires_grad]
    assert len(state) == len(trained) > 100


def test_gradients_are_those_of_the_summed_losses(build):
    step, _ = build()
    torch.manual_seed(3)
    with EventStorage():
        sum(step.model(make_batch()).values()).backward()
    expected = [p.grad.clone() for p in step.model.parameters() if p.grad is not None]
    torch.manual_seed(3)
    step(make_batch())
    found = [p.grad for p in step.model.parameters() if p.grad is not None]
    assert len(found) > 100 and all(map(torch.equal, expected, found))


def test_a_part_is_trained_alone(build):
    step, _ = build()
    losses = step.forward(make_batch(), part=step.model.student)
    assert losses and not [name for name in losses if "distill" in name]
    step.backward(losses)
    trained = {n.split(".")[0] for n, p in step.model.named_parameters() if p.grad is not None}
    assert trained == {"student"}
