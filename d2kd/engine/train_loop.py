# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Training loops that check the losses in every process, or take several batches a step."""

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..modeling import Distiller
from ..structures import StepRecord
from ..utils.rng_state import get_random_state
from .unwrap import unwrap

__all__ = [
    "AccumulatingAMPTrainer",
    "AccumulatingTrainer",
    "CheckedAMPTrainer",
    "CheckedTrainer",
    "build_train_loop",
]


def build_train_loop(
    cfg: CfgNode, model: nn.Module, loader: Iterable, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """Detectron2's own step with the checks of this file, or one of several batches.

    Args:
        cfg: SOLVER.AMP.ENABLED and SOLVER.ACCUMULATE_STEPS.
        model: wrapped in DistributedDataParallel where there are several processes.
        loader: of batches.
        optimizer: of the model.
    """
    half, steps = cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.ACCUMULATE_STEPS
    if steps > 1:
        kind = AccumulatingAMPTrainer if half else AccumulatingTrainer
        return kind(model, loader, optimizer, steps)
    return (CheckedAMPTrainer if half else CheckedTrainer)(model, loader, optimizer)


class CheckedTrainer(SimpleTrainer):
    """SimpleTrainer that stops at a loss that is not finite in any process, not only the main one.

    Detectron2 checks the mean over processes, in the main one. Only the process whose loss it is
    can name the loss and the images. The steps are Detectron2's own.

    Attributes:
        last_step: a baseline's latest batch and losses; a Distiller keeps its own.
    """

    last_step: StepRecord | None = None
    _batches: Iterator | None = None

    @property
    def _data_loader_iter(self) -> Iterator:
        """What SimpleTrainer takes its batches from: those of the loader, remembered."""
        if self._batches is None:
            self._batches = self._remember(iter(self.data_loader))
        return self._batches

    @_data_loader_iter.setter
    def _data_loader_iter(self, batches: Iterator) -> None:
        # Detectron2 0.6 sets it; main creates it when it is first used.
        self._batches = self._remember(batches)

    def _remember(self, batches: Iterator) -> Iterator:
        distilled = isinstance(unwrap(self.model), Distiller)
        for batch in batches:
            if not distilled:
                self.last_step = StepRecord(batch, get_random_state())
            yield batch

    def _add_losses(self, losses: dict[str, Tensor]) -> None:
        """Keep the losses of a baseline's batch, unless they are there."""
        if self.last_step and not self.last_step.losses:
            detached = {name: loss.detach() for name, loss in losses.items()}
            self.last_step = dataclasses.replace(self.last_step, losses=detached)

    def _write_metrics(self, loss_dict: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        self._add_losses(loss_dict)
        super()._write_metrics(loss_dict, *args, **kwargs)
        if comm.is_main_process():
            return
        # The line above has waited for these values already: this read adds no wait for the GPU.
        losses = torch.stack([loss.detach().float().reshape(()) for loss in loss_dict.values()])
        if not losses.isfinite().all().item():
            raise FloatingPointError(f"a loss of process {comm.get_rank()} is not finite")


class CheckedAMPTrainer(CheckedTrainer, AMPTrainer):
    """CheckedTrainer in half precision."""


class AccumulatingTrainer(CheckedTrainer):
    """SimpleTrainer whose step averages the gradients of several batches.

    This equals a step with one large batch if every loss is a mean over images, or is normalised by
    a number that is the same for all batches. Logged losses are means over the batches; data_time
    is the sum. Trained BatchNorm layers see the batches one by one.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        steps: int,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            model, data_loader, optimizer, kwargs: of SimpleTrainer.
            steps: batches of one optimizer step.
        """
        super().__init__(model, data_loader, optimizer, **kwargs)
        self.steps = steps
        # The records of this step's batches, as far as it has come.
        self.micro_steps: list[StepRecord] = []

    def run_step(self) -> None:
        """Compute the gradients of all batches of the step, then update the weights once."""
        assert self.model.training, "[AccumulatingTrainer] model was changed to eval mode!"
        self.micro_steps.clear()
        self.optimizer.zero_grad()
        means: dict[str, Tensor] = {}
        data_time = 0.0
        for left in reversed(range(self.steps)):
            start = time.perf_counter()
            # SimpleTrainer's own iterator: another one would restart the data.
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with self._alone() if left else nullcontext():
                losses = self._forward(batch)
                self._backward(sum(losses.values()) / self.steps)
            for name, loss in losses.items():
                means[name] = means.get(name, 0.0) + loss.detach() / self.steps
        # Detectron2 0.6 has neither this hook nor metrics that are written by another thread.
        getattr(self, "after_backward", lambda: None)()
        if getattr(self, "async_write_metrics", False):
            self.concurrent_executor.submit(self._write_metrics, means, data_time, iter=self.iter)
        else:
            self._write_metrics(means, data_time)
        self._update()

    def _alone(self) -> AbstractContextManager:
        """Keep the gradients in this process; the last batch's backward averages them all."""
        parallel = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if parallel else nullcontext()

    def _forward(self, batch: Any) -> dict[str, Tensor]:
        losses = self.model(batch)
        model = unwrap(self.model)
        losses = losses if isinstance(losses, dict) else {"total_loss": losses}
        self._add_losses(losses)
        last_step = model.last_step if isinstance(model, Distiller) else self.last_step
        if last_step:
            self.micro_steps.append(last_step)
        return losses

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()


class AccumulatingAMPTrainer(AccumulatingTrainer, CheckedAMPTrainer):
    """AccumulatingTrainer in half precision; the gradient scaler acts once a step."""

    def _forward(self, batch: Any) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device.type
        # Detectron2 0.6 has no attribute for another precision.
        with torch.autocast(device, dtype=getattr(self, "precision", torch.float16)):
            return super()._forward(batch)

    def _backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
