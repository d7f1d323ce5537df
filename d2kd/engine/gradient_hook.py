# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The hook that measures how strongly each distillation loss pulls, and may set how strongly.

Shape shorthand in this file:
    D: distillation losses
"""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor

from ..losses.gradient_share import gradient_products, loss_gradients
from ..structures import DistillStep, LossTerms
from .loss_schedule import build_schedule
from .unwrap import unwrap

__all__ = ["GradientHook", "build_gradient_hook"]

# Of a new measurement in the running means of the norms.
_NEWEST = 0.25


class GradientHook(HookBase):
    """Compares the losses' gradients at the student's features every few iterations.

    It logs the norm of each distillation loss's gradient relative to that of the summed detection
    losses, and the cosine of the two, as ``distill_gradient/<loss>_ratio`` and ``..._cosine``. With
    ``shares`` it also scales each loss so that this ratio is the loss's share times the schedule's
    factor. The norms are running means over the measurements, and part of the checkpoint.

    A measurement runs the backward of every loss once more, from the loss to the features: through
    the heads, but not through the backbone.
    """

    def __init__(
        self, schedule: ParamScheduler, period: int, shares: Mapping[str, float] | None = None
    ):
        """
        Args:
            schedule: training progress -> factor, which the losses' own hooks have applied.
            period: iterations from one measurement to the next.
            shares: loss -> ratio of the norms at factor 1, in the order of the model's losses; None
                leaves the losses as they are.
        """
        self.schedule = schedule
        self.period = period
        self.shares = shares
        # (1 + D,) running means of the norms at factor 1: detection, then each loss.
        self._norms: Tensor | None = None
        # What each loss is multiplied by, of the norms.
        self._scales: dict[str, Tensor] = {}
        self._measured_at: int | None = None
        self._latest: dict[str, Tensor] = {}

    def before_train(self) -> None:
        """Bind to the model."""
        unwrap(self.trainer.model).register_terms_hook(self)

    def after_train(self) -> None:
        """Unbind from the model."""
        unwrap(self.trainer.model).register_terms_hook(None)

    def __call__(
        self, detection: dict[str, Tensor], terms: dict[str, LossTerms], step: DistillStep
    ) -> dict[str, LossTerms]:
        """The terms, scaled if there are shares."""
        factor = self.schedule(self.trainer.iter / self.trainer.max_iter)
        if self._is_due() and factor > 0:
            self._measure(detection, terms, step, factor)
        if not self._scales:
            return terms
        return {name: found.scaled(self._scales[name]) for name, found in terms.items()}

    def _is_due(self) -> bool:
        """Once in an iteration, of whose batches (SOLVER.ACCUMULATE_STEPS) the first counts."""
        now = self.trainer.iter
        unknown = self.shares is not None and self._norms is None
        return now != self._measured_at and (now % self.period == 0 or unknown)

    def _measure(
        self,
        detection: dict[str, Tensor],
        terms: dict[str, LossTerms],
        step: DistillStep,
        factor: float,
    ) -> None:
        """Update the norms, and keep what is logged after the step."""
        # In half precision small gradients would be lost without the scale of the backward pass.
        # Ratios and cosines do not depend on it.
        loop = getattr(self.trainer, "_trainer", self.trainer)
        scaler = getattr(loop, "grad_scaler", None)
        enlarge = scaler.scale if scaler else lambda loss: loss
        products = gradient_products(
            enlarge(sum(detection.values())),
            {name: enlarge(found.total) for name, found in terms.items()},
            list(step.student.features.values()),
        )
        self._measured_at = self.trainer.iter
        if self.shares is not None:
            self._set_norms(self._mean_with(products[: 1 + len(terms)].sqrt(), factor))
        for name, found in loss_gradients(products, list(terms)).items():
            self._latest[f"{name}_ratio"] = found.ratio * self._scales.get(name, 1.0)
            self._latest[f"{name}_cosine"] = found.cosine
            if name in self._scales:
                self._latest[f"{name}_scale"] = self._scales[name]

    def _mean_with(self, norms: Tensor, factor: float) -> Tensor:
        """The running means with these (1 + D,) norms, of which the losses' have the factor."""
        norms = torch.cat([norms[:1], norms[1:] / factor])
        old = torch.zeros_like(norms) if self._norms is None else self._norms.to(norms.device)
        # A loss without a region has no gradient, and in half precision norms may overflow: such a
        # measurement says nothing.
        says = norms.isfinite() & (norms > 0)
        mean = torch.where(old > 0, old.lerp(norms, _NEWEST), norms)
        return torch.where(says, mean, old)

    def _set_norms(self, norms: Tensor) -> None:
        """Keep the norms, and scale each loss to its share; by 0 until its gradient was seen."""
        self._norms = norms
        self._scales = {
            name: torch.where(norm > 0, share * norms[0] / norm, 0.0)
            for (name, share), norm in zip(self.shares.items(), norms[1:])
        }

    def after_step(self) -> None:
        """Log the measurement of this step, if there was one."""
        for name, value in self._latest.items():
            self.trainer.storage.put_scalar(
                f"distill_gradient/{name}", value.item(), smoothing_hint=False
            )
        self._latest.clear()

    def state_dict(self) -> dict[str, Any]:
        """The norms, by which the losses are scaled; nothing without shares."""
        return {} if self._norms is None else {"norms": self._norms.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with these norms."""
        if self.shares is not None and "norms" in state:
            self._set_norms(state["norms"])


def build_gradient_hook(cfg: CfgNode) -> GradientHook | None:
    """The hook, if DISTILL.LOG_GRADIENTS or DISTILL.BALANCE asks for it."""
    node = cfg.DISTILL
    if node.BALANCE == "gradient":
        shares = {name: node[name.upper()].SHARE for name in node.LOSSES}
        return GradientHook(build_schedule(cfg), node.BALANCE_PERIOD, shares)
    return GradientHook(build_schedule(cfg), node.LOG_GRADIENTS) if node.LOG_GRADIENTS else None
