# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checks of what the trial steps measured: losses, gradients, teacher, ratios, memory, time."""

import math
import os
import resource
import statistics

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..modeling import split_losses
from ..utils.text import first_few
from .finding import Finding, error, ok, warning
from .trial_steps import TrialResult

__all__ = [
    "check_finite",
    "check_gradients",
    "check_memory",
    "check_ratios",
    "check_teacher_still",
    "check_time",
    "fingerprint",
]

# A distillation loss above or below these multiples of the detection losses dominates or vanishes.
HIGH, LOW = 10.0, 0.01


def fingerprint(module: nn.Module) -> list[Tensor]:
    """Copy every tensor of a module, for a later comparison."""
    return [value.clone() for value in module.state_dict().values()]


def _means(trial: TrialResult) -> dict[str, float]:
    return {k: statistics.fmean(x[k] for x in trial.losses) for k in trial.losses[0]}


def check_finite(trial: TrialResult) -> Finding:
    """Check that no loss is infinite or NaN."""
    for losses, images in zip(trial.losses, trial.images):
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            advice = "check these images, then DISTILL.*.WEIGHT and SOLVER.AMP"
            return error("finite", f"{', '.join(bad)} on {first_few(images)}", advice)
    means = ", ".join(f"{name} {value:.3g}" for name, value in _means(trial).items())
    return ok("finite", f"all losses of {len(trial.losses)} batches; means: {means}")


def check_gradients(model: nn.Module, trial: TrialResult) -> Finding:
    """Check that every trainable parameter gets a gradient, nonzero in at least one batch."""
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    lacking = [name for name in trainable if name not in trial.reached]
    if lacking:
        text = f"{len(lacking)} of {len(trainable)} tensors get none: {first_few(lacking, 3)}"
        advice = "training in several processes would stop: is a module never used?"
        return error("gradients", text, advice)
    still = [name for name in trainable if name not in trial.touched]
    if still:
        text = f"{len(still)} of {len(trainable)} are 0 in every batch: {first_few(still, 3)}"
        advice = "is the weight of a loss 0, or is no region positive?"
        return warning("gradients", text, advice)
    frozen = sum(
        not p.requires_grad for n, p in model.named_parameters() if not n.startswith("teacher.")
    )
    text = f"all {len(trainable)} trainable tensors get a gradient"
    text += f"; {frozen} of the student's are frozen (MODEL.BACKBONE.FREEZE_AT)" if frozen else ""
    return ok("gradients", text)


def check_teacher_still(teacher: nn.Module, before: list[Tensor]) -> Finding:
    """Check that the steps left the teacher unchanged, frozen and in eval mode."""
    now = teacher.state_dict().items()
    problems = {
        "changed": [name for (name, value), old in zip(now, before) if not value.equal(old)],
        "are in training mode": [name for name, m in teacher.named_modules() if m.training],
        "require gradients": [name for name, p in teacher.named_parameters() if p.requires_grad],
    }
    for what, names in problems.items():
        if names:
            return error("teacher still", f"{len(names)} of its parts {what}: {first_few(names)}")
    return ok(
        "teacher still", f"none of its {len(before)} tensors changed; eval mode, no gradients"
    )


def check_ratios(
    cfg: CfgNode, trial: TrialResult, *, target: float, started: bool = True
) -> list[Finding]:
    """Compare each distillation loss with the sum of the detection losses.

    Args:
        target: the ratio for which a weight is suggested.
        started: whether the student had the weights that training starts from. Random weights
            before frozen normalization statistics give features of any size.
    """
    means = _means(trial)
    losses, distillation = split_losses(means)
    detection, found = sum(losses.values()), []
    for name, value in distillation.items():
        weight = cfg.DISTILL[name.upper()].WEIGHT
        ratio = value / detection
        text = f"{value:.3g} is {ratio:.3g} x the detection losses, {detection:.3g}"
        advise = _advise if started else _advise_of_random
        fits, advice = advise(f"DISTILL.{name.upper()}.WEIGHT", weight, ratio, target)
        found.append((ok if fits else warning)(f"ratio {name}", text, advice))
    return found


def _advise(key: str, weight: float, ratio: float, target: float) -> tuple[bool, str]:
    """Say whether a ratio is one to train with, and which weight gives the target."""
    if ratio == 0 or not math.isfinite(ratio):
        return False, f"this loss is 0 now: is {key} 0, or is no region positive or accepted?"
    advice = f"{key} {weight * target / ratio:.2g} would make it {target:g} (now {weight:g})"
    return LOW <= ratio <= HIGH, advice


def _advise_of_random(key: str, *_: float) -> tuple[bool, str]:
    """Suggest no weight: the loss of another start would be another."""
    return False, f"no {key} is suggested: the steps used random weights, not MODEL.WEIGHTS"


def check_memory(trial: TrialResult) -> Finding:
    """Report the peak memory so far."""
    part = f", with {trial.used} of {trial.batch} images" if trial.used < trial.batch else ""
    if torch.cuda.is_available():
        used = torch.cuda.max_memory_allocated() / 2**30
        whole = torch.cuda.get_device_properties(0).total_memory / 2**30
        text = f"{used:.1f} of the GPU's {whole:.0f} GiB{part}"
        if used > 0.9 * whole:
            return warning("memory", text, "larger images may not fit: lower SOLVER.IMS_PER_BATCH")
        return ok("memory", text)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ok("memory", f"{used:.1f} of {whole:.0f} GiB, used by this process{part}")


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def check_time(cfg: CfgNode, trial: TrialResult) -> Finding:
    """Report seconds per iteration with and without distillation, and the whole schedule's time."""
    batches = cfg.SOLVER.ACCUMULATE_STEPS
    ours = statistics.median(trial.seconds) * trial.shrink * batches
    plain = statistics.median(trial.plain_seconds) * trial.shrink * batches
    whole = [_duration(x * cfg.SOLVER.MAX_ITER) for x in (ours, plain)]
    text = (
        f"{ours:.2f} s per iteration, {plain:.2f} s without distillation: {whole[0]} and "
        f"{whole[1]} for {cfg.SOLVER.MAX_ITER} iterations on this machine, without evaluation; "
    ) + _measured_on(trial)
    loading, workers = statistics.median(trial.loading), cfg.DATALOADER.NUM_WORKERS
    if loading / max(workers, 1) > ours / batches:
        advice = (
            f"one worker takes {loading:.2f} s to load a batch: raise DATALOADER.NUM_WORKERS from "
            f"{workers} to {math.ceil(loading * batches / ours)}"
        )
        return warning("time", text, advice)
    return ok("time", text)


def _measured_on(trial: TrialResult) -> str:
    steps = len(trial.seconds)
    text = f"measured on {steps} step{'s' * (steps > 1)} of "
    if not trial.warm:
        text = "measured on the first step alone, which is the slowest, of "
    if trial.used == trial.batch:
        return f"{text}all {trial.batch} images"
    return f"{text}{trial.used} of {trial.batch} images and scaled up"
