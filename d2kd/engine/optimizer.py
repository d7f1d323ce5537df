# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Detectron2's optimizer and learning-rate schedule, and AdamW beside its SGD."""

import logging

import torch
from detectron2 import solver
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..config.defaults import OPTIMIZERS
from ..config.validation import describe_warmup
from ..utils.errors import ConfigError

__all__ = ["build_lr_scheduler", "build_optimizer"]

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's SGD, or AdamW over the same parameter groups (SOLVER.OPTIMIZER).

    Raises:
        ConfigError: SOLVER.OPTIMIZER is neither.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name not in OPTIMIZERS:
        raise ConfigError(f"SOLVER.OPTIMIZER is {name!r}: set it to one of {OPTIMIZERS}")
    if name == "SGD":
        return solver.build_optimizer(cfg, model)
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return optimizer(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Detectron2's schedule; warns if the training ends within the warm-up."""
    if describe_warmup(cfg):
        logger.warning(describe_warmup(cfg))
    return solver.build_lr_scheduler(cfg, optimizer)
