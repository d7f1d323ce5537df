# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""All checks in order, up to the first that makes the others pointless."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from torch import nn

from ..checkpoint import starting_names
from ..modeling import Distiller
from . import gradient_checks, model_checks, step_checks
from .cache_checks import check_cache
from .config_checks import check_device, check_output, read_config
from .data_checks import check_data
from .evaluation_checks import check_evaluation
from .finding import Finding, Status, error
from .step_budget import StepBudget
from .teacher_checks import check_agreement, check_classes_of_pair
from .trial_steps import TrialResult, run_steps

__all__ = ["diagnose"]

# On a CPU the whole may take a minute: these, plus imports and steps slower than the first.
SECONDS = 48.0

Say = Callable[[Finding], None]


class _Notes:
    """Collects the findings."""

    def __init__(self, say: Say | None):
        self.findings: list[Finding] = []
        self.say = say

    def add(self, *findings: Finding) -> bool:
        """Keep and report findings; returns False if any finding so far is an error."""
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
    weights: str | None = None,
    modules: Sequence[str] = (),
    say: Say | None = None,
) -> list[Finding]:
    """Run every check; nothing is written.

    Args:
        config_file, options: as given to train_net.py.
        batches: number of training batches to try and time; None for 4, on a CPU fewer if they
            take long.
        images: number of images of each batch to use, 0 for all; None for all, on a CPU as many
            as there is time for.
        target: ratio of a distillation loss to the detection losses for which a weight is
            suggested.
        weights: a checkpoint of a run of this config, at which ratios and gradients are measured
            too.
        modules: names after ``--import``.
        say: called with each finding as soon as it is made.

    Returns:
        All findings, in the order in which they were made.
    """
    began, notes = time.perf_counter(), _Notes(say)
    cfg, findings = read_config(config_file, options, modules)
    if not notes.add(*findings):
        return notes.findings
    seed_all_rng(max(cfg.SEED, 0))
    cfg, device = check_device(cfg)
    notes.add(device, check_output(cfg))
    if notes.add(*check_data(cfg)):
        notes.add(check_evaluation(cfg))
    model, findings = model_checks.build(cfg)
    notes.add(*findings)
    if model is None:
        return notes.findings
    started, fine = _examine(cfg, model, notes)
    # Without data or starting weights, steps would show nothing about the training.
    if fine:
        if isinstance(model, Distiller):
            notes.add(check_agreement(cfg, model))
        budget = StepBudget(batches, images, began + SECONDS if _is_cpu(cfg) else math.inf)
        report = partial(_check_pull, cfg, target=target, started=started)
        trial = _try_steps(cfg, model, budget, report, notes)
        if weights and trial and isinstance(model, Distiller):
            _try_checkpoint(cfg, model, weights, trial, target, notes)
    return notes.findings


def _examine(cfg: CfgNode, model: nn.Module, notes: _Notes) -> tuple[bool, bool]:
    """Check the built detectors and what they start from.

    Returns:
        Whether the student has the weights that training starts from, and whether steps can be
        tried.
    """
    if isinstance(model, Distiller):
        notes.add(model_checks.check_readable(cfg, model))
    started, loaded, start = model_checks.load_start(cfg, model)
    notes.add(*model_checks.check_pixels(cfg), start)
    inherited, inherit = model_checks.check_inherit(cfg, model)
    fine = notes.add(inherit)
    # Of a checkpoint that cannot be reached from here, nothing is known.
    if started:
        known = starting_names(loaded, inherited)
        notes.add(*model_checks.check_frozen(cfg, model, known))
    if isinstance(model, Distiller):
        notes.add(*model_checks.check_square(cfg, model))
        notes.add(model_checks.check_adapters(cfg, model), check_classes_of_pair(cfg, model))
        if model.teacher.cache is not None:
            fine = notes.add(check_cache(cfg, model))
            # Nothing is written here, and the steps are timed as they are without it.
            model.teacher.leave_cache()
    return started, fine


def _try_checkpoint(
    cfg: CfgNode, model: Distiller, weights: str, trial: TrialResult, target: float, notes: _Notes
) -> None:
    """As many steps as the trial took, at a checkpoint of the run."""
    if notes.add(model_checks.load_checkpoint(model, weights)):
        again = run_steps(cfg, model, StepBudget(len(trial.seconds), trial.used))
        notes.add(*_check_pull(cfg, again, target=target))


def _check_pull(
    cfg: CfgNode, trial: TrialResult, *, target: float, started: bool = True
) -> list[Finding]:
    """How strongly the distillation losses act, by their values and by their gradients."""
    return [
        *step_checks.check_ratios(cfg, trial, target=target, started=started),
        *gradient_checks.check_gradient_shares(cfg, trial, started=started),
    ]


def _is_cpu(cfg: CfgNode) -> bool:
    return torch.device(cfg.MODEL.DEVICE).type == "cpu"


def _try_steps(
    cfg: CfgNode,
    model: nn.Module,
    budget: StepBudget,
    report: Callable[[TrialResult], list[Finding]],
    notes: _Notes,
) -> TrialResult | None:
    """Run the steps and report on them; None if a loss or a step failed."""
    teacher = model.teacher.model if isinstance(model, Distiller) else None
    before = step_checks.fingerprint(teacher) if teacher else []
    try:
        trial = run_steps(cfg, model, budget)
    except Exception as problem:  # whatever it is, it would stop the training too
        notes.add(error("steps", f"a training step failed: {type(problem).__name__}: {problem}"))
        return None
    if not notes.add(step_checks.check_finite(trial)):
        return None
    notes.add(step_checks.check_gradients(model, trial))
    if teacher:
        notes.add(step_checks.check_teacher_still(teacher, before))
        notes.add(*report(trial))
    notes.add(step_checks.check_memory(trial), step_checks.check_time(cfg, trial))
    return trial
