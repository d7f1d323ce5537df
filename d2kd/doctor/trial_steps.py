# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A few training steps at learning rate 0: their times, losses and gradients."""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from detectron2.config import CfgNode
from torch import Tensor, nn

from ..engine import DistillTrainer
from ..engine.trial_step import TrialStep
from ..losses.gradient_share import gradient_products, loss_gradients
from ..modeling import Distiller
from ..structures import DistillStep, LossTerms
from ..utils.timing import wait
from .step_budget import StepBudget

__all__ = ["TrialResult", "run_steps"]


@dataclass
class TrialResult:
    """What the steps measured.

    Attributes:
        losses: for each step, name -> value; distillation losses at schedule factor 1.
        gradients: for each step, distillation loss -> (ratio, cosine), as of LossGradient.
        images: for each step, the file names.
        reached: names of the parameters that got a gradient in some step.
        touched: names of those whose gradient was not 0 everywhere.
        seconds, plain_seconds: for each step with and without distillation, without loading and
            without measuring the gradients.
        loading: seconds that one process takes to load each batch.
        batch: images of a whole batch.
        used: images of it that the timed steps were given.
        warm: whether an untimed step came before the timed ones.
        measuring: seconds that the gradients of the latest step took.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    gradients: list[dict[str, tuple[float, float]]] = field(default_factory=list)
    images: list[list[str]] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)
    plain_seconds: list[float] = field(default_factory=list)
    loading: list[float] = field(default_factory=list)
    batch: int = 1
    used: int = 1
    warm: bool = True
    measuring: float = 0.0

    @property
    def shrink(self) -> float:
        """The factor by which a whole batch takes longer."""
        return self.batch / self.used

    @property
    def finite(self) -> bool:
        """Whether all losses so far are finite."""
        return all(math.isfinite(x) for losses in self.losses for x in losses.values())


def run_steps(cfg: CfgNode, model: nn.Module, budget: StepBudget) -> TrialResult:
    """Try a few training steps at learning rate 0.

    The first step warms up: its times count only if no other step follows. A loss that is not
    finite ends the trial, because its gradients would spoil the optimizer's state. Each batch is
    also given to the student alone, which is what training without distillation costs.

    Args:
        cfg: the student's.
        model: from ``model_checks.build``.
        budget: number of steps, and of images in each.
    """
    trial, step = TrialResult(), TrialStep(cfg, model)
    if isinstance(model, Distiller):
        for name in model.distill_losses:
            model.register_loss_hook(name, _unscaled)
        model.register_terms_hook(_GradientProbe(trial))
    batches = _load_batches(cfg, trial)
    batch = next(batches)
    trial.batch, trial.used = len(batch), budget.first_images(len(batch))
    seconds = _try(step, batch[: trial.used], trial) / trial.used
    if trial.finite:
        _set_images(trial, budget.later_images(len(batch), seconds))
    for batch in itertools.islice(batches, budget.most):
        if not trial.finite or not budget.goes_on(seconds * trial.used):
            break
        seconds = _try(step, batch[: trial.used], trial) / trial.used
    _drop_first_times(trial)
    return trial


def _drop_first_times(trial: TrialResult) -> None:
    """Leave out the times of the step that warmed up, unless there are no others."""
    trial.warm = len(trial.seconds) > 1
    for times in (trial.seconds, trial.plain_seconds, trial.loading):
        del times[: int(trial.warm)]


def _set_images(trial: TrialResult, count: int) -> None:
    """Use this many images from now on; losses of fewer images are not comparable and go."""
    if count > trial.used:
        trial.losses.clear()
        trial.gradients.clear()
        trial.images.clear()
    trial.used = count


def _unscaled(loss_module: nn.Module, step: DistillStep) -> LossTerms:
    """The loss hook that applies no schedule, only the loss's own weight."""
    return loss_module(step)


class _GradientProbe:
    """The terms hook that measures every step's gradients and leaves the losses as they are."""

    def __init__(self, trial: TrialResult):
        self.trial = trial

    def __call__(
        self, detection: dict[str, Tensor], terms: dict[str, LossTerms], step: DistillStep
    ) -> dict[str, LossTerms]:
        """Add the ratios and cosines to the trial, and its own seconds to be left out."""
        wait()
        start = time.perf_counter()
        losses = {name: found.total for name, found in terms.items()}
        features = list(step.student.features.values())
        products = gradient_products(sum(detection.values()), losses, features)
        found = loss_gradients(products, list(terms))
        self.trial.gradients.append(
            {name: (x.ratio.item(), x.cosine.item()) for name, x in found.items()}
        )
        self.trial.measuring = time.perf_counter() - start
        return terms


def _load_batches(cfg: CfgNode, trial: TrialResult) -> Iterator[list[dict]]:
    """Load training batches in this process, and time each."""
    single = cfg.clone()
    single.defrost()
    single.DATALOADER.NUM_WORKERS = 0
    batches = iter(DistillTrainer.build_train_loader(single))
    while True:
        start = time.perf_counter()
        batch = next(batches)
        trial.loading.append(time.perf_counter() - start)
        yield batch


def _try(step: TrialStep, batch: list[dict], trial: TrialResult) -> float:
    """Run a step, then the student's alone; returns the seconds of both."""
    trial.seconds.append(_distilled_step(step, batch, trial))
    if not trial.finite:
        return trial.seconds[-1]
    if not isinstance(step.model, Distiller):
        trial.plain_seconds.append(trial.seconds[-1])
        return trial.seconds[-1]
    trial.plain_seconds.append(_plain_step(step, batch))
    return trial.seconds[-1] + trial.plain_seconds[-1]


def _distilled_step(step: TrialStep, batch: list[dict], trial: TrialResult) -> float:
    """Run a step and record its losses and gradients.

    Returns:
        Its seconds; 0 if a loss is not finite, for then the step ends there.
    """
    wait()
    start = time.perf_counter()
    losses = step.forward(batch)
    trial.losses.append({name: value.item() for name, value in losses.items()})
    trial.images.append([str(x.get("file_name", "?")) for x in batch])
    if not trial.finite:
        return 0.0
    step.backward(losses)
    wait()
    seconds = time.perf_counter() - start - trial.measuring
    gradients = {n: p.grad for n, p in step.model.named_parameters() if p.grad is not None}
    trial.reached.update(gradients)
    trial.touched.update(name for name, gradient in gradients.items() if gradient.any())
    return seconds


def _plain_step(step: TrialStep, batch: list[dict]) -> float:
    """Seconds of a step of the student without its teacher."""
    wait()
    start = time.perf_counter()
    step.backward(step.forward(batch, part=step.model.student))
    wait()
    return time.perf_counter() - start
