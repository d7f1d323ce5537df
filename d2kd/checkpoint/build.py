# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Assembles what a run's checkpoints hold and the hooks that write them, for a trainer."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from .fingerprint import ConfigFingerprint, TeacherFingerprint
from .resume_hooks import get_loaders
from .run_checkpointer import RunCheckpointer
from .run_state import RunState

__all__ = ["build_checkpointer", "build_run_state"]


def build_checkpointer(
    cfg: CfgNode,
    trainer: Any,
    student: nn.Module,
    distill_losses: nn.Module | None = None,
    teacher: dict[str, str] | None = None,
    classes: Sequence[str] = (),
) -> RunCheckpointer:
    """The checkpointer of a run, without its random state (``build_run_state``).

    A checkpoint holds "model", the student alone under stock names; "trainer", with optimizer and
    schedule; "config", the keys of the run; "classes", their names; "run_state"; and if the run is
    distilled, "distill_losses", with the adapters, and "teacher", the fingerprint of its weights.

    Args:
        cfg: the run's config.
        trainer: a weak reference to the trainer.
        student: not wrapped in DistributedDataParallel.
        distill_losses, teacher: the loss modules and "weights" and "sha256" of the teacher's file;
            None for a baseline.
        classes: names of the student's classes; empty if they are not known.
    """
    return RunCheckpointer(
        student,
        cfg.OUTPUT_DIR,
        trainer=trainer,
        config=ConfigFingerprint(cfg),
        classes=classes,
        distill_losses=distill_losses,
        teacher=TeacherFingerprint(**teacher) if teacher is not None else None,
    )


def build_run_state(train_loader: Any, hooks: Sequence[HookBase], student: nn.Module) -> RunState:
    """The random state of a run, to be added to its checkpointer as "run_state".

    Args:
        train_loader: of the training.
        hooks: of the trainer; PreciseBN has a loader of its own.
        student: not wrapped in DistributedDataParallel.
    """
    return RunState(get_loaders(train_loader, hooks), student)
