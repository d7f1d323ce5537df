# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The hooks that compute the distillation losses, and those that log or set their size."""

from itertools import takewhile

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

from ..modeling import split_losses
from ..structures import DistillStep, LossTerms
from .gradient_hook import build_gradient_hook
from .loss_schedule import build_schedule
from .unwrap import unwrap
from .vis_period import VisPeriodHook

__all__ = ["DistillLossHook", "LossRatioHook", "build_composed_hooks", "build_distill_hooks"]


class DistillLossHook(HookBase):
    """Computes one distillation loss inside the model's forward, scaled by the schedule.

    It keeps no state: Detectron2 saves the state of hooks under their class name, so the three
    hooks of this class would share one.
    """

    def __init__(self, name: str, schedule: ParamScheduler):
        """
        Args:
            name: of the loss: "feature", "cls" or "reg".
            schedule: training progress -> factor.
        """
        self.name = name
        self.schedule = schedule

    def before_train(self) -> None:
        """Bind to the model, and find the iteration from which the factor stays 0."""
        unwrap(self.trainer.model).register_loss_hook(self.name, self)
        last = self.trainer.max_iter
        # A factor of 0 may also be a warm-up's first: what counts is that none follows.
        zeros = takewhile(lambda i: self.schedule(i / last) == 0, range(last - 1, -1, -1))
        self._over_at = last - len(list(zeros))

    def before_step(self) -> None:
        """Tell the model once the factor stays 0."""
        if self.trainer.iter >= self._over_at:
            unwrap(self.trainer.model).finish_loss(self.name)
            self._log(0.0)

    def after_train(self) -> None:
        """Unbind from the model."""
        unwrap(self.trainer.model).unregister_loss_hook(self.name)

    def __call__(self, loss_module: nn.Module, step: DistillStep) -> LossTerms:
        """The loss times the schedule's factor.

        It is computed at factor 0 too: DDP needs every adapter in the graph of every step.
        """
        factor = self.schedule(self.trainer.iter / self.trainer.max_iter)
        self._log(factor)
        return loss_module(step).scaled(factor)

    def _log(self, factor: float) -> None:
        get_event_storage().put_scalar(f"loss_weight/{self.name}", factor, smoothing_hint=False)


class LossRatioHook(HookBase):
    """Logs each distillation loss relative to the sum of the detection losses.

    It reads what the trainer has logged, so that no step waits for a GPU. "loss" is in the logged
    name because Detectron2's console prints only such keys.
    """

    def __init__(self, names: list[str], period: int = 20):
        self.names = names
        self.period = period

    def after_step(self) -> None:
        """Log the ratios whenever Detectron2's writers write."""
        done = self.trainer.iter + 1
        # The iterations at which Detectron2's writers write.
        if done % self.period and done != self.trainer.max_iter:
            return
        storage = self.trainer.storage
        detection, distillation = split_losses(
            {
                key: value
                for key, (value, _) in storage.latest().items()
                if key.startswith("loss_") and "/" not in key
            }
        )
        whole = sum(detection.values())
        for name in self.names:
            if name in distillation and whole > 0:
                ratio = distillation[name] / whole
                storage.put_scalar(f"loss_ratio/{name}", ratio, smoothing_hint=False)


def build_distill_hooks(cfg: CfgNode) -> list[HookBase]:
    """The hooks of every enabled loss, for ``register_hooks`` of any trainer."""
    schedule = build_schedule(cfg)
    names = list(cfg.DISTILL.LOSSES)
    gradients = build_gradient_hook(cfg)
    draws = cfg.VIS_PERIOD > 0 and comm.is_main_process()
    return [
        *(DistillLossHook(name, schedule) for name in names),
        *([gradients] if gradients else []),
        *([VisPeriodHook(cfg)] if draws else []),
        LossRatioHook(names),
    ]


def build_composed_hooks(model: nn.Module, period: int = 20) -> list[HookBase]:
    """The hooks of a model from ``Distiller.compose``, for ``register_hooks`` of any trainer.

    They come before the hook that writes the metrics.

    Args:
        model: possibly wrapped in DistributedDataParallel.
        period: iterations between two calls of the metrics' writers.
    """
    schedules = unwrap(model).schedules
    hooks = [DistillLossHook(name, schedule) for name, schedule in schedules.items()]
    return [*hooks, LossRatioHook(list(schedules), period)]
