# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""All checks in order; where one makes the rest pointless, it is the last."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from torch import nn

from ..modeling import Distiller
from . import model_checks as networks
from . import step_checks as training
from .config_checks import check_device, check_output, read_config
from .data_checks import check_data
from .evaluation_checks import check_evaluation
from .finding import Finding, Status, error
from .step_budget import StepBudget
from .trial_steps import TrialResult, run_steps

__all__ = ["diagnose"]

# Of the minute that a CPU may take; the rest is for imports, and steps slower than the first.
SECONDS = 48.0

Say = Callable[[Finding], None]


class _Notes:
    """The findings so far."""

    def __init__(self, say: Say | None):
        self.findings: list[Finding] = []
        self.say = say

    def add(self, *findings: Finding) -> bool:
        """Keep and say them; False if any finding so far is an error."""
        for finding in findings:
            self.findings.append(finding)
            if self.say:
                self.say(finding)
        return all(finding.status is not Status.ERROR for finding in self.findings)


def diagnose(
    config_file: str,
    options: Sequence[str] = (),
    *,
    batches: int | None = None,
    images: int | None = None,
    target: float = 0.5,
    say: Say | None = None,
) -> list[Finding]:
    """Examine a set-up; nothing is written.

    Args:
        config_file, options: as given to train_net.py.
        batches: training batches that are tried, and timed; None for 4, on a CPU fewer where time
            is short.
        images: that are used of each batch, 0 for all; None for all, on a CPU as many as there is
            time for.
        target: ratio of a distillation loss to the detection losses that weights are suggested
            for.
        say: called with each finding as it is made.

    Returns:
        All findings, in the order in which they were made.
    """
    began, notes = time.perf_counter(), _Notes(say)
    cfg, findings = read_config(config_file, options)
    if not notes.add(*findings):
        return notes.findings
    seed_all_rng(max(cfg.SEED, 0))
    cfg, device = check_device(cfg)
    notes.add(device, check_output(cfg))
    if notes.add(*check_data(cfg)):
        notes.add(check_evaluation(cfg))
    model, findings = networks.build(cfg)
    notes.add(*findings)
    if model is None:
        return notes.findings
    started, start = networks.load_start(cfg, model)
    notes.add(*networks.check_pixels(cfg), start)
    fine = notes.add(networks.check_inherit(cfg, model))
    if isinstance(model, Distiller):
        notes.add(networks.check_adapters(cfg, model))
    # Steps on data that cannot be read, or from weights that are not there, say nothing.
    if fine:
        budget = StepBudget(batches, images, began + SECONDS if _is_cpu(cfg) else math.inf)
        report_ratios = partial(training.check_ratios, cfg, target=target, started=started)
        _try_steps(cfg, model, budget, report_ratios, notes)
    return notes.findings


def _is_cpu(cfg: CfgNode) -> bool:
    return torch.device(cfg.MODEL.DEVICE).type == "cpu"


def _try_steps(
    cfg: CfgNode,
    model: nn.Module,
    budget: StepBudget,
    report_ratios: Callable[[TrialResult], list[Finding]],
    notes: _Notes,
) -> None:
    teacher = model.teacher.model if isinstance(model, Distiller) else None
    before = training.fingerprint(teacher) if teacher else []
    try:
        trial = run_steps(cfg, model, budget)
    except Exception as problem:  # whatever a step raises would have stopped the training
        notes.add(error("steps", f"a training step failed: {type(problem).__name__}: {problem}"))
        return
    if not notes.add(training.check_finite(trial)):
        return
    notes.add(training.check_gradients(model, trial))
    if teacher:
        notes.add(training.check_teacher_still(teacher, before))
        notes.add(*report_ratios(trial))
    notes.add(training.check_memory(trial), training.check_time(cfg, trial))
