# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A few training steps that move no weight: what they cost, and what every tensor got."""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from ..engine import DistillTrainer
from ..modeling import Distiller
from ..structures import DistillStep, LossTerms
from .step_budget import StepBudget

__all__ = ["TrialResult", "run_steps"]


@dataclass
class TrialResult:
    """What the steps showed.

    Attributes:
        losses: of each step, name -> value; distillation losses at schedule factor 1.
        images: file names of each step.
        reached: names of the parameters that got a gradient in some step.
        touched: names of those that got one which is not 0 throughout.
        seconds, plain_seconds: of each step with and without distillation, batch loading apart.
        loading: seconds that one process takes to load each batch.
        batch, used: images of a batch, and how many of them the timed steps were given.
        warm: whether another step went before those that are timed.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    images: list[list[str]] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)
    plain_seconds: list[float] = field(default_factory=list)
    loading: list[float] = field(default_factory=list)
    batch: int = 1
    used: int = 1
    warm: bool = True

    @property
    def shrink(self) -> float:
        """By how much a whole batch takes longer."""
        return self.batch / self.used

    @property
    def finite(self) -> bool:
        """Whether all losses are, so far."""
        return all(math.isfinite(x) for losses in self.losses for x in losses.values())


def run_steps(cfg: CfgNode, model: nn.Module, budget: StepBudget) -> TrialResult:
    """Forward, backward and an optimizer step at learning rate 0, a few times.

    The first step warms up: its times are kept only if no other is made. A loss that is not finite
    ends the trial: its gradients would spoil the weights even so. Each batch is also given to the
    student alone, which is what training without distillation costs.

    Args:
        cfg: the student's.
        model: from ``networks.build``.
        budget: how many steps, of how many images.
    """
    trial = TrialResult()
    for name in model.distill_losses if isinstance(model, Distiller) else ():
        model.register_loss_hook(name, _unscaled)
    optimizer = DistillTrainer.build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    half = torch.autocast("cuda", enabled=cfg.SOLVER.AMP.ENABLED and torch.cuda.is_available())
    with EventStorage(), half:
        batches = _load_batches(cfg, trial)
        batch = next(batches)
        trial.batch, trial.used = len(batch), budget.first_images(len(batch))
        seconds = _try(model, batch[: trial.used], optimizer, trial) / trial.used
        if trial.finite:
            _set_images(trial, budget.later_images(len(batch), seconds))
        for batch in itertools.islice(batches, budget.most):
            if not trial.finite or not budget.goes_on(seconds * trial.used):
                break
            seconds = _try(model, batch[: trial.used], optimizer, trial) / trial.used
    trial.warm = len(trial.seconds) > 1
    for times in (trial.seconds, trial.plain_seconds, trial.loading):
        del times[: int(trial.warm)]
    return trial


def _set_images(trial: TrialResult, count: int) -> None:
    """Go on with so many images of a batch; losses of fewer are none to compare with."""
    if count > trial.used:
        trial.losses.clear()
        trial.images.clear()
    trial.used = count


def _try(
    model: nn.Module, batch: list[dict], optimizer: torch.optim.Optimizer, trial: TrialResult
) -> float:
    """Seconds of a step, with that of the student alone."""
    trial.seconds.append(_step(model, batch, optimizer, trial))
    if not trial.finite:
        return trial.seconds[-1]
    if not isinstance(model, Distiller):
        trial.plain_seconds.append(trial.seconds[-1])
        return trial.seconds[-1]
    trial.plain_seconds.append(_step(model.student, batch, optimizer))
    return trial.seconds[-1] + trial.plain_seconds[-1]


def _unscaled(loss_module: nn.Module, step: DistillStep) -> LossTerms:
    """A loss as its weight alone makes it."""
    return loss_module(step)


def _load_batches(cfg: CfgNode, trial: TrialResult) -> Iterator[list[dict]]:
    """Batches as training gets them."""
    single = cfg.clone()
    single.defrost()
    single.DATALOADER.NUM_WORKERS = 0
    batches = iter(DistillTrainer.build_train_loader(single))
    while True:
        start = time.perf_counter()
        batch = next(batches)
        trial.loading.append(time.perf_counter() - start)
        yield batch


def _step(
    model: nn.Module,
    batch: list[dict],
    optimizer: torch.optim.Optimizer,
    trial: TrialResult | None = None,
) -> float:
    """Seconds of one step; the GPU is waited for."""
    _wait()
    start = time.perf_counter()
    losses = model(batch)
    if trial:
        trial.losses.append({name: value.item() for name, value in losses.items()})
        trial.images.append([str(x.get("file_name", "?")) for x in batch])
        if not trial.finite:
            return 0.0
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    _wait()
    seconds = time.perf_counter() - start
    if trial:
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        trial.reached.update(gradients)
        trial.touched.update(name for name, grad in gradients.items() if grad.any())
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
