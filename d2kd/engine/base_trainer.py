# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""DefaultTrainer's construction, on GPUs and on CPUs, with any of d2kd's training loops."""

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..structures import StepRecord
from ..utils.malloc import keep_freed_memory
from ..utils.progress import shows_progress
from .distributed.process_group import data_parallel
from .optimizer import build_lr_scheduler, build_optimizer
from .prepare_cache import prepare_cache_for
from .progress_line import ProgressLine
from .train_loop import AccumulatingTrainer, build_train_loop
from .unwrap import unwrap
from .writers import RunWriterHook, check_writers

__all__ = ["BaseTrainer"]


class BaseTrainer(DefaultTrainer):
    """DefaultTrainer that is built without its checkpointer and hooks, which a subclass adds.

    ``DefaultTrainer.__init__`` wraps the model in DistributedDataParallel on GPUs only, and offers
    no way to choose the training loop. This constructor makes the same parts in the same order.
    """

    def __init__(self, cfg: CfgNode):
        check_writers(cfg)
        keep_freed_memory(cfg.MODEL.DEVICE)
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        prepare_cache_for(cfg, model, loader)
        # The name under which DefaultTrainer's own methods find the training loop.
        self._trainer = build_train_loop(cfg, data_parallel(model), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER

    @property
    def unwrapped_model(self) -> nn.Module:
        """The model, inside DistributedDataParallel or not."""
        return unwrap(self.model)

    @property
    def micro_steps(self) -> Sequence[StepRecord]:
        """The batches of the current iteration so far, where it has several (ACCUMULATE_STEPS)."""
        loop = self._trainer
        return loop.micro_steps if isinstance(loop, AccumulatingTrainer) else ()

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's, the writers of LOG.WRITERS, and the line of progress on a terminal."""
        hooks = [hook for hook in super().build_hooks() if hook is not None]
        if comm.is_main_process() and shows_progress():
            # After the timer, before all that may write to the terminal.
            hooks.insert(1, ProgressLine(self.cfg.TEST.BEST_METRIC))
        if comm.is_main_process() and self.cfg.LOG.WRITERS:
            hooks.append(RunWriterHook(self.cfg))
        return hooks

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Detectron2's SGD or AdamW."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Detectron2's, with a warning if it never leaves the warm-up."""
        return build_lr_scheduler(cfg, optimizer)
