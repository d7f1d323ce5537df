# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Training loops over Detectron2's: losses checked in every process, and several batches a step."""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..modeling import Distiller
from ..structures import StepRecord
from .hooks import unwrap

__all__ = [
    "AccumulatingAMPTrainer",
    "AccumulatingTrainer",
    "CheckedAMPTrainer",
    "CheckedTrainer",
]


class CheckedTrainer(SimpleTrainer):
    """SimpleTrainer that stops at a loss that is not finite also where its process is not the main.

    Detectron2's main process looks at the mean over processes; which of them is at fault, and on
    what images, that one alone can say.
    """

    def _write_metrics(self, loss_dict: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        super()._write_metrics(loss_dict, *args, **kwargs)
        if comm.is_main_process():
            return
        # The line above has just waited for these values: a read of all adds no wait for a GPU.
        losses = torch.stack([loss.detach().float().reshape(()) for loss in loss_dict.values()])
        if not losses.isfinite().all().item():
            raise FloatingPointError(f"a loss of process {comm.get_rank()} is not finite")


class CheckedAMPTrainer(CheckedTrainer, AMPTrainer):
    """The same in half precision."""


class AccumulatingTrainer(CheckedTrainer):
    """SimpleTrainer whose step averages the gradients of several batches.

    That is the step of one batch as large as all, as far as every loss is a mean over images, or
    normalised by what all batches have alike. Logged losses are means over the batches, data_time
    is their sum. BatchNorm that trains sees the batches one by one.
    """

    def __init__(self, model, data_loader, optimizer, steps: int, **kwargs):
        """
        Args:
            model, data_loader, optimizer, kwargs: of SimpleTrainer.
            steps: batches of one optimizer step.
        """
        super().__init__(model, data_loader, optimizer, **kwargs)
        self.steps = steps
        # A Distiller's records of this step's batches, as far as it has come.
        self.micro_steps: list[StepRecord] = []

    def run_step(self) -> None:
        assert self.model.training, "[AccumulatingTrainer] model was changed to eval mode!"
        self.micro_steps.clear()
        self.optimizer.zero_grad()
        means: dict[str, Tensor] = {}
        data_time = 0.0
        for left in reversed(range(self.steps)):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with self._alone() if left else nullcontext():
                losses = self._forward(batch)
                self._backward(sum(losses.values()) / self.steps)
            for name, loss in losses.items():
                means[name] = means.get(name, 0.0) + loss.detach() / self.steps
        # Release 0.6 has neither this hook nor metrics written by another thread.
        getattr(self, "after_backward", lambda: None)()
        if getattr(self, "async_write_metrics", False):
            self.concurrent_executor.submit(self._write_metrics, means, data_time, iter=self.iter)
        else:
            self._write_metrics(means, data_time)
        self._update()

    def _alone(self) -> AbstractContextManager:
        """Gradients stay here: they are averaged over the processes with the last batch's."""
        parallel = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if parallel else nullcontext()

    def _forward(self, batch: Any) -> dict[str, Tensor]:
        losses = self.model(batch)
        model = unwrap(self.model)
        if isinstance(model, Distiller):
            self.micro_steps.append(model.last_step)
        return losses if isinstance(losses, dict) else {"total_loss": losses}

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()


class AccumulatingAMPTrainer(AccumulatingTrainer, CheckedAMPTrainer):
    """The same with AMPTrainer's autocast and gradient scaler, which acts once in a step."""

    def _forward(self, batch: Any) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device.type
        # Release 0.6 knows no other precision.
        with torch.autocast(device, dtype=getattr(self, "precision", torch.float16)):
            return super()._forward(batch)

    def _backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
