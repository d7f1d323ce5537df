# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The hooks of exact resuming: they gather every process's state before a checkpoint is written."""

import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PreciseBN

from .best_checkpoint import BestCheckpoint
from .run_checkpointer import save_final, save_step
from .run_state import RunState

__all__ = [
    "GatherRunState",
    "SaveAfterEvaluation",
    "add_resume_hooks",
    "end_if_over",
    "evaluate_step_before",
    "get_loaders",
]


class _ResumeHook(HookBase):
    """Knows after which steps a checkpoint is written, and after which there is an evaluation."""

    def __init__(self, cfg: CfgNode, run_state: RunState):
        self.run_state = run_state
        self._save_period = cfg.SOLVER.CHECKPOINT_PERIOD
        self._evaluation_period = cfg.TEST.EVAL_PERIOD if cfg.DATASETS.TEST else 0

    def _saves(self) -> bool:
        done = self.trainer.iter + 1
        return done % self._save_period == 0 or done >= self.trainer.max_iter

    def _evaluates(self) -> bool:
        """The evaluation at the end of training does not count: no step follows it."""
        done, period = self.trainer.iter + 1, self._evaluation_period
        return period > 0 and done % period == 0 and done < self.trainer.max_iter


class GatherRunState(_ResumeHook):
    """Gathers the state of all processes if the next hook writes a checkpoint, or evaluates.

    An evaluation that is stopped leaves no time to gather.
    """

    def after_step(self) -> None:
        """Gather the state if this step is saved or evaluated."""
        self.run_state.evaluation_due = self._evaluates()
        if self._saves() or self.run_state.evaluation_due:
            self.run_state.gather()
        else:
            self.run_state.discard()


class SaveAfterEvaluation(_ResumeHook):
    """Writes the checkpoint again after the evaluation of its step, which draws random numbers.

    Detectron2 saves before the evaluation, in case that fails. A run that is resumed from the first
    checkpoint evaluates before it continues; one that is resumed from the second does not.
    """

    def after_step(self) -> None:
        """Save again if this step was evaluated."""
        if not self.run_state.evaluation_due:
            return
        self.run_state.evaluation_due = False
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # the evaluation has ended the training
            self.run_state.gather()
            save_final(self.trainer.checkpointer, self.trainer.iter)
        elif self._saves():
            self.run_state.gather()
            save_step(self.trainer.checkpointer, self.trainer.iter)
        else:
            self.run_state.discard()


def add_resume_hooks(
    hooks: Sequence[HookBase], cfg: CfgNode, run_state: RunState
) -> list[HookBase]:
    """Detectron2's hooks with those of exact resuming among them.

    Args:
        hooks: of any process; only those of the main one have a PeriodicCheckpointer.
        cfg: says when to save and when to evaluate.
        run_state: of the trainer.
    """
    added = list(hooks)
    kinds = [type(hook) for hook in added]
    # What is saved again holds the best value too.
    evaluated = kinds.index(BestCheckpoint if BestCheckpoint in kinds else EvalHook)
    added.insert(evaluated + 1, SaveAfterEvaluation(cfg, run_state))
    first = PeriodicCheckpointer if PeriodicCheckpointer in kinds else EvalHook
    added.insert(kinds.index(first), GatherRunState(cfg, run_state))
    return added


def evaluate_step_before(trainer: TrainerBase, hooks: Sequence[HookBase]) -> None:
    """Make up for the evaluation of the step before the first one of a resumed run.

    Args:
        trainer: about to make its first step.
        hooks: of the trainer.
    """
    trainer.iter = trainer.storage.iter = trainer.start_iter - 1
    for hook in hooks:
        # That of test-time augmentation does nothing before the end.
        if isinstance(hook, (EvalHook, BestCheckpoint)):
            hook.after_step()
    trainer.iter = trainer.storage.iter = trainer.start_iter


def end_if_over(trainer: Any, hooks: Sequence[HookBase], run_state: RunState) -> None:
    """Let a resumed run make no step if its last evaluations were no better (TEST.STOP_AFTER).

    Args:
        trainer: about to make its first step, with all evaluations before it done.
        hooks: of the trainer.
        run_state: of the trainer.
    """
    best = next((hook for hook in hooks if isinstance(hook, BestCheckpoint)), None)
    start = trainer.start_iter
    if best is None or start == 0 or not best.is_over(start):
        return
    trainer.iter = trainer.storage.iter = start - 1
    if os.path.basename(trainer.checkpointer.get_checkpoint_file()) != "model_final.pth":
        run_state.gather()
        save_final(trainer.checkpointer, trainer.iter)
    trainer.stop_early()


def get_loaders(train_loader: Any, hooks: Sequence[HookBase]) -> list[Any]:
    """The loader of the training, and that of PreciseBN if it is used.

    PreciseBN offers no way to its loader or to whether it is disabled but its private attributes.
    """
    precise = [hook for hook in hooks if isinstance(hook, PreciseBN) and not hook._disabled]
    return [train_loader, *(hook._data_loader for hook in precise)]
