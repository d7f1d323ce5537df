"""A few training steps that move no weight: what they cost, and what every tensor got."""

import math
import time
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Set

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..engine import DistillTrainer
from ..modeling import LOSS_PREFIX, Distiller
from ..structures import DistillStep

__all__ = ["Trial", "run_steps"]


@dataclass
class Trial:
    """What the steps showed.

    Attributes:
        losses: of each step, name -> value; distillation losses at schedule factor 1.
        images: file names of each step.
        reached: names of the parameters that got a gradient in some step.
        touched: names of those that got one which is not 0 throughout.
        seconds, plain_seconds: of each step with and without distillation, batch loading apart.
        loading: seconds that one process takes to load each batch.
        shrink: images of a batch over those that were used.
    """

    losses: List[Dict[str, float]] = field(default_factory=list)
    images: List[List[str]] = field(default_factory=list)
    reached: Set[str] = field(default_factory=set)
    touched: Set[str] = field(default_factory=set)
    seconds: List[float] = field(default_factory=list)
    plain_seconds: List[float] = field(default_factory=list)
    loading: List[float] = field(default_factory=list)
    shrink: float = 1.0

    @property
    def finite(self) -> bool:
        """Whether all losses are, so far."""
        return all(math.isfinite(x) for losses in self.losses for x in losses.values())


def run_steps(cfg: CfgNode, model: nn.Module, count: int, images: int) -> Trial:
    """
    Forward, backward and an optimizer step at learning rate 0, ``count`` + 1 times.

    The first step warms up and its times are not kept. A loss that is not finite ends the trial:
    its gradients would spoil the weights even so. Each batch is also given to the student
    alone, which is what training without distillation costs.

    Args:
        cfg: the student's.
        model: from ``networks.build``.
        count: steps that are timed.
        images: that are used of each batch; 0 for all.
    """
    trial, distilled = Trial(), isinstance(model, Distiller)
    for name in model.distill_losses if distilled else ():
        model.register_loss_hook(name, _unscaled)
    optimizer = DistillTrainer.build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    half = torch.autocast("cuda", enabled=cfg.SOLVER.AMP.ENABLED and torch.cuda.is_available())
    with EventStorage(), half:
        for batch in _load_batches(cfg, count + 1, images, trial):
            trial.seconds.append(_step(model, batch, optimizer, trial))
            if not trial.finite:
                break
            plain = _step(model.student, batch, optimizer) if distilled else trial.seconds[-1]
            trial.plain_seconds.append(plain)
    for times in (trial.seconds, trial.plain_seconds, trial.loading):
        del times[:1]
    return trial


def _unscaled(loss_module: nn.Module, step: DistillStep) -> Dict[str, Tensor]:
    """A loss as its weight alone makes it."""
    return {LOSS_PREFIX + loss_module.name: loss_module(step)}


def _load_batches(cfg: CfgNode, count: int, images: int, trial: Trial) -> Iterator[List[dict]]:
    """Batches as training gets them, cut to the first few images if asked."""
    single = cfg.clone()
    single.defrost()
    single.DATALOADER.NUM_WORKERS = 0
    batches = iter(DistillTrainer.build_train_loader(single))
    for _ in range(count):
        start = time.perf_counter()
        batch = next(batches)
        trial.loading.append(time.perf_counter() - start)
        used = batch[: images or None]
        trial.shrink = len(batch) / len(used)
        yield used


def _step(
    model: nn.Module,
    batch: List[dict],
    optimizer: torch.optim.Optimizer,
    trial: Optional[Trial] = None,
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
