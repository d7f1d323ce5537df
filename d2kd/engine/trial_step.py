# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A training step at learning rate 0, for measurements: it costs the same and moves no weight."""

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .trainer import DistillTrainer

__all__ = ["TrialStep"]


class TrialStep:
    """Forward, backward and optimizer step, with the learning rate at 0."""

    def __init__(self, cfg: CfgNode, model: nn.Module):
        """
        Args:
            cfg: the student's; SOLVER.* says which optimizer, and whether to use half precision.
            model: in training mode; returns a dict of losses.
        """
        self.model = model
        self._optimizer = DistillTrainer.build_optimizer(cfg, model)
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
        self._half = cfg.SOLVER.AMP.ENABLED and on_gpu

    def forward(self, batch: list[dict], part: nn.Module | None = None) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            batch: as the data loader returns it.
            part: a detector within the model to train alone; the whole model if None.
        """
        with EventStorage(), torch.autocast("cuda", enabled=self._half):
            return (part or self.model)(batch)

    def backward(self, losses: dict[str, Tensor]) -> None:
        """Compute the gradients of the summed losses and let the optimizer step."""
        self._optimizer.zero_grad()
        sum(losses.values()).backward()
        self._optimizer.step()

    def __call__(self, batch: list[dict]) -> None:
        """One whole step."""
        self.backward(self.forward(batch))
