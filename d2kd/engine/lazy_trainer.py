# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""DistillTrainer for a LazyConfig: every part is what the config instantiates."""

from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.solver import LRMultiplier
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..data.lazy_loader import build_lazy_train_loader
from ..modeling import Distiller
from ..modeling.build import load_teacher
from ..modeling.detector_facts import write_facts
from .hooks import build_composed_hooks
from .lazy_keys import lazy_keys
from .stop_on_signal import StoppableLoader
from .trainer import DistillTrainer

__all__ = ["LazyTrainer"]


class LazyTrainer(DistillTrainer):
    """Trains ``model`` of a LazyConfig, under the teacher of ``distill`` if there is one.

    Hooks, checkpoints, signals and resuming are those of a yaml's training. The cfg that the base
    class reads holds what the LazyConfig says of them; nothing is built from it.
    """

    def __init__(self, lazy: Any):
        """
        Args:
            lazy: omegaconf.DictConfig with ``model``, ``dataloader``, ``optimizer``,
                ``lr_multiplier`` and ``train`` as Detectron2's tools/lazyconfig_train_net.py reads
                them. ``distill`` holds ``teacher`` (arguments of ``load_teacher``, or a LazyCall
                that gives the detector), ``losses``, and optionally ``proposals`` and
                ``cross_head`` of ``Distiller.compose``.
        """
        self.lazy, cfg = lazy, lazy_keys(lazy)
        order = cfg.INPUT.FORMAT
        self._student = instantiate(lazy.model).to(cfg.MODEL.DEVICE)
        write_facts(cfg, self._student)
        # Batches are in the mapper's order of channels.
        if lazy.dataloader.train.get("mapper", {}).get("image_format"):
            cfg.INPUT.FORMAT = order
        super().__init__(cfg)

    # Detectron2's build_* are class methods of a cfg. These have the LazyConfig instead.

    def build_model(self, cfg: CfgNode) -> nn.Module:  # type: ignore[override]
        """The student, or the Distiller around it."""
        if not cfg.DISTILL.ENABLED:
            return self._student
        node = dict(self.lazy.distill)
        teacher = _build_teacher(node.pop("teacher"), cfg)
        losses = {name: instantiate(loss) for name, loss in node.pop("losses").items()}
        return Distiller.compose(
            student=self._student,
            teacher=teacher,
            losses=losses,
            datasets=cfg.DATASETS.TRAIN,
            **node,
        )

    def build_optimizer(  # type: ignore[override]
        self, cfg: CfgNode, model: nn.Module
    ) -> torch.optim.Optimizer:
        """Of the student's parameters and the adapters'; the teacher's need no gradient."""
        self.lazy.optimizer.params.model = _trained_part(model)
        optimizer = instantiate(self.lazy.optimizer)
        # A config holds no modules: it is printed and saved.
        self.lazy.optimizer.params.model = None
        return optimizer

    def build_train_loader(self, cfg: CfgNode) -> Any:  # type: ignore[override]
        """``dataloader.train``; Detectron2's loader is made resumable."""
        return build_lazy_train_loader(self.lazy.dataloader.train, cfg.DATALOADER.BAD_IMAGES)

    def build_lr_scheduler(  # type: ignore[override]
        self, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> LRScheduler:
        """``lr_multiplier``, once for each iteration."""
        return LRMultiplier(optimizer, instantiate(self.lazy.lr_multiplier), cfg.SOLVER.MAX_ITER)

    def build_loss_hooks(self) -> list[HookBase]:
        """Those of the schedules that ``distill.losses`` give."""
        return build_composed_hooks(self.model, self.lazy.train.log_period)

    def build_hooks(self) -> list[HookBase]:
        """DistillTrainer's, with the periods of ``train``."""
        train, hooks = self.lazy.train, super().build_hooks()
        for i, hook in enumerate(hooks):
            if isinstance(hook, PeriodicCheckpointer):
                hooks[i] = PeriodicCheckpointer(self.checkpointer, **train.checkpointer)
            elif isinstance(hook, PeriodicWriter):
                hooks[i] = PeriodicWriter(self.build_writers(), period=train.log_period)
        return hooks

    def write_student_config(self) -> None:
        """Nothing: ``model`` of the LazyConfig builds the student."""

    def test(self, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> OrderedDict:
        """``dataloader.test`` under ``dataloader.evaluator``; nothing without one."""
        return evaluate_lazy(self.lazy, model)


def evaluate_lazy(lazy: Any, model: nn.Module) -> OrderedDict:
    """Evaluate a model as a LazyConfig says.

    Args:
        lazy: with ``dataloader.test`` and ``dataloader.evaluator``; without these, nothing is done.
        model: the student, or a Distiller around it.
    """
    if "evaluator" not in lazy.dataloader:
        return OrderedDict()
    loader = StoppableLoader(instantiate(lazy.dataloader.test))
    results = inference_on_dataset(model, loader, instantiate(lazy.dataloader.evaluator))
    print_csv_format(results)
    return results


def _trained_part(model: nn.Module) -> nn.Module:
    """The adapters, and the student under its own names, by which a config may choose rates."""
    if not isinstance(model, Distiller):
        return model
    part = nn.Module()
    for name, child in model.student.named_children():
        part.add_module(name, child)
    for name, parameter in model.student.named_parameters(recurse=False):
        part.register_parameter(name, parameter)
    part.add_module("distill_losses", model.distill_losses)
    return part


def _build_teacher(node: Any, cfg: CfgNode) -> nn.Module:
    # A run's random streams do not depend on its teacher.
    with torch.random.fork_rng(devices=[]):
        if "_target_" in node:
            return instantiate(node).to(cfg.MODEL.DEVICE)
        return load_teacher(**node, device=cfg.MODEL.DEVICE, input_format=cfg.INPUT.FORMAT)
