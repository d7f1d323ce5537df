# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What the trial steps say of losses, gradients, the teacher, the ratios, memory and time."""

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

# Beyond these factors of the detection losses, a distillation loss rules, or does nothing.
HIGH, LOW = 10.0, 0.01


def fingerprint(module: nn.Module) -> list[Tensor]:
    """A copy of everything in a module, to see later whether it moved."""
    return [value.clone() for value in module.state_dict().values()]


def _means(trial: TrialResult) -> dict[str, float]:
    return {k: statistics.fmean(x[k] for x in trial.losses) for k in trial.losses[0]}


def check_finite(trial: TrialResult) -> Finding:
    """No loss is infinite or not a number."""
    for losses, images in zip(trial.losses, trial.images):
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            advice = "look at these images; then at DISTILL.*.WEIGHT and SOLVER.AMP"
            return error("finite", f"{', '.join(bad)} on {first_few(images)}", advice)
    means = ", ".join(f"{name} {value:.3g}" for name, value in _means(trial).items())
    return ok("finite", f"all losses of {len(trial.losses)} batches; means: {means}")


def check_gradients(model: nn.Module, trial: TrialResult) -> Finding:
    """Every trainable parameter gets a gradient, and one that is not 0 in some batch."""
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    lacking = [name for name in trainable if name not in trial.reached]
    if lacking:
        text = f"{len(lacking)} of {len(trainable)} tensors have none: {first_few(lacking, 3)}"
        return error("gradients", text, "several processes would stop; is a module never used?")
    still = [name for name in trainable if name not in trial.touched]
    if still:
        text = f"{len(still)} of {len(trainable)} are 0 in every batch: {first_few(still, 3)}"
        return warning("gradients", text, "is a weight of the losses 0, or no region positive?")
    frozen = sum(
        not p.requires_grad for n, p in model.named_parameters() if not n.startswith("teacher.")
    )
    text = f"all {len(trainable)} trainable tensors get one"
    text += f"; {frozen} of the student's are frozen (MODEL.BACKBONE.FREEZE_AT)" if frozen else ""
    return ok("gradients", text)


def check_teacher_still(teacher: nn.Module, before: list[Tensor]) -> Finding:
    """The steps left the teacher as it was, frozen and in eval mode."""
    now = teacher.state_dict().items()
    problems = {
        "moved": [name for (name, value), old in zip(now, before) if not value.equal(old)],
        "are in training mode": [name for name, m in teacher.named_modules() if m.training],
        "want gradients": [name for name, p in teacher.named_parameters() if p.requires_grad],
    }
    for what, names in problems.items():
        if names:
            return error("teacher still", f"{len(names)} of its parts {what}: {first_few(names)}")
    return ok("teacher still", f"none of its {len(before)} tensors moved; eval mode, no gradients")


def check_ratios(
    cfg: CfgNode, trial: TrialResult, *, target: float, started: bool = True
) -> list[Finding]:
    """Each distillation loss against the sum of the detection losses, and a weight for a target.

    Args:
        started: whether the steps were those of the weights that training starts from. Features
            of random weights behind frozen statistics may be of any size.
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
    """Whether a ratio is one to train with, and what to set."""
    if ratio == 0 or not math.isfinite(ratio):
        return False, f"it teaches nothing now: is {key} 0, or no region positive or accepted?"
    advice = f"{key} {weight * target / ratio:.2g} would make it {target:g} (now {weight:g})"
    return LOW <= ratio <= HIGH, advice


def _advise_of_random(key: str, *_) -> tuple[bool, str]:
    """A weight that follows from other weights than those of the training would be wrong."""
    return False, f"nothing follows for {key}: the steps are of random weights, not MODEL.WEIGHTS"


def check_memory(trial: TrialResult) -> Finding:
    """The most that was in use at once, so far."""
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
    return ok("memory", f"{used:.1f} of {whole:.0f} GiB, this process alone{part}")


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def check_time(cfg: CfgNode, trial: TrialResult) -> Finding:
    """Seconds an iteration with and without distillation, and hours for the schedule."""
    batches = cfg.SOLVER.ACCUMULATE_STEPS
    ours = statistics.median(trial.seconds) * trial.shrink * batches
    plain = statistics.median(trial.plain_seconds) * trial.shrink * batches
    whole = [_duration(x * cfg.SOLVER.MAX_ITER) for x in (ours, plain)]
    text = (
        f"{ours:.2f} s an iteration, {plain:.2f} s without distillation: {whole[0]} and {whole[1]} "
        f"for {cfg.SOLVER.MAX_ITER} iterations on this machine, evaluation apart; "
    ) + _measured_on(trial)
    loading, workers = statistics.median(trial.loading), cfg.DATALOADER.NUM_WORKERS
    if loading / max(workers, 1) > ours / batches:
        advice = (
            f"loading a batch takes one worker {loading:.2f} s: raise DATALOADER.NUM_WORKERS from "
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
