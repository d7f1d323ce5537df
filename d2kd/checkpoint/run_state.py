# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Exact resuming: what a checkpoint must remember beside weights, optimizer and schedule."""

import logging
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PreciseBN
from detectron2.utils import comm
from torch import nn

from ..data.resumable_loader import ResumableLoader
from ..utils.rng_state import get_random_state, set_random_state
from .run_checkpointer import check_fits

__all__ = [
    "AfterEvaluation",
    "BeforeCheckpoint",
    "RunCheckpointer",
    "RunState",
    "TeacherFingerprint",
    "add_resume_hooks",
    "get_loaders",
]

logger = logging.getLogger(__name__)


class TeacherFingerprint:
    """A checkpointable that remembers whose student this is, and refuses another teacher."""

    def __init__(self, identity: dict):
        """
        Args:
            identity: "weights" and "sha256", of ``FrozenTeacher.identity``.
        """
        self.identity = identity

    def state_dict(self) -> dict:
        return dict(self.identity)

    def load_state_dict(self, state: dict) -> None:
        if state["sha256"] != self.identity["sha256"]:
            raise ValueError(
                f"this run was started with the teacher {state['weights']} (sha256 "
                f"{state['sha256'][:12]}) and is resumed with {self.identity['weights']} "
                f"({self.identity['sha256'][:12]}): set DISTILL.TEACHER.WEIGHTS back, or choose "
                "another OUTPUT_DIR"
            )


class RunCheckpointer(DetectionCheckpointer):
    """Detectron2's, which does not continue a run that does not fit.

    That is a baseline as a distilled run, the reverse, or either with another network or optimizer.
    """

    _resumes = False

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        self._resumes = resume and self.has_checkpoint()
        return super().resume_or_load(path, resume=resume)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """The first thing to be loaded: the optimizer's state would fail without a reason."""
        if self._resumes:
            self._refuse_other_kind("teacher" in checkpoint)
            modules = {k: x for k, x in self.checkpointables.items() if isinstance(x, nn.Module)}
            optimizer = self.checkpointables["trainer"].optimizer
            keys = self.checkpointables["keys"].state_dict()
            check_fits(checkpoint, {"model": self.model, **modules}, optimizer, keys)
        return super()._load_model(checkpoint)

    def _refuse_other_kind(self, was_distilled: bool) -> None:
        """
        Args:
            was_distilled: the checkpoint has a teacher's identity; stock Detectron2's have none.

        Raises:
            ValueError: this run has a teacher and that one had none, or the reverse.
        """
        if was_distilled == ("teacher" in self.checkpointables):
            return
        kind = "under a teacher" if was_distilled else "without a teacher"
        raise ValueError(
            f"the run in OUTPUT_DIR {self.save_dir} was trained {kind}, and DISTILL.ENABLED is "
            f"{not was_distilled}: set DISTILL.ENABLED {was_distilled} to resume that run, or "
            "another OUTPUT_DIR for this one"
        )


class RunState:
    """A checkpointable of what is random: data order, data workers, the processes' own streams.

    With several processes each has its own; ``collect`` brings them together, and all processes
    must call it at the same step, before the main one writes a checkpoint.
    """

    def __init__(self, loaders: list[Any], student: nn.Module):
        """
        Args:
            loaders: of training data; such as are no ResumableLoader begin anew.
            student: of whose losses' moving normalizer, which Detectron2's dense detectors keep
                outside their weights, a run also depends.
        """
        self.loaders = [x for x in loaders if isinstance(x, ResumableLoader)]
        self.student = student
        # Whether this step's evaluation is still to come; it draws random numbers too.
        self.evaluation_due = False
        self._collected: list[dict[str, Any]] | None = None
        self._random: dict[str, Any] | None = None
        self._evaluation_missing = False

    def collect(self) -> None:
        self._collected = comm.gather(self._get()) if comm.get_world_size() > 1 else None

    def forget(self) -> None:
        """What was collected is of an earlier step."""
        self._collected = None

    def _get(self) -> dict[str, Any]:
        return {
            "random": get_random_state(),
            "loaders": [loader.state_dict() for loader in self.loaders],
            "normalizer": getattr(self.student, "loss_normalizer", None),
            "evaluation_due": self.evaluation_due,
        }

    def state_dict(self) -> dict[str, Any]:
        if comm.get_world_size() > 1:
            return {"processes": self._collected or []}
        return {"processes": [self._get()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        processes = state["processes"]
        if len(processes) != comm.get_world_size():
            logger.warning(
                "The checkpoint is of %d process(es), these are %d: data order and random numbers "
                "are not those the run would have gone on with",
                len(processes),
                comm.get_world_size(),
            )
        if not processes:
            return
        rank = comm.get_rank()
        mine = processes[min(rank, len(processes) - 1)]
        for loader, loaded in zip(self.loaders, mine["loaders"]):
            loader.load_state_dict(loaded)
        if mine["normalizer"] is not None:
            self.student.loss_normalizer = mine["normalizer"]
        self._random = mine["random"] if rank < len(processes) else None
        # All processes evaluate or none.
        self._evaluation_missing = processes[0]["evaluation_due"]

    def warn_if_absent(self) -> None:
        """After a checkpoint was loaded that may be of stock Detectron2, or of an older d2kd."""
        if self._random is None:
            logger.warning(
                "The checkpoint has no record of this process: its data order and random numbers "
                "begin anew"
            )

    def go_on(self) -> bool:
        """To be called last before the first step.

        Returns:
            Whether the evaluation of the step before is missing.
        """
        if self._random is not None:
            set_random_state(self._random)
        missing, self._random, self._evaluation_missing = self._evaluation_missing, None, False
        return missing


class _Due(HookBase):
    """Knows what happens after which step."""

    def __init__(self, cfg: CfgNode, streams: RunState):
        self.streams = streams
        self._save = cfg.SOLVER.CHECKPOINT_PERIOD
        self._evaluate = cfg.TEST.EVAL_PERIOD if cfg.DATASETS.TEST else 0

    def _saves(self) -> bool:
        done = self.trainer.iter + 1
        return done % self._save == 0 or done >= self.trainer.max_iter

    def _evaluates(self) -> bool:
        """The evaluation after the last step is not among those a checkpoint waits for."""
        done = self.trainer.iter + 1
        return self._evaluate > 0 and done % self._evaluate == 0 and done < self.trainer.max_iter


class BeforeCheckpoint(_Due):
    """Collects the streams of all processes where a checkpoint is written next."""

    def after_step(self) -> None:
        self.streams.evaluation_due = self._evaluates()
        if self._saves():
            self.streams.collect()
        else:
            self.streams.forget()


class AfterEvaluation(_Due):
    """Writes the checkpoint again after the evaluation of its step, which draws random numbers.

    Detectron2 saves first, in case the evaluation fails. A run resumed from that checkpoint
    evaluates before it goes on; one resumed from the second does not need to.
    """

    def after_step(self) -> None:
        if not self.streams.evaluation_due:
            return
        self.streams.evaluation_due = False
        if self._saves():
            self.streams.collect()
            name = f"model_{self.trainer.iter:07d}"
            self.trainer.checkpointer.save(name, iteration=self.trainer.iter)


def add_resume_hooks(hooks: list[HookBase], cfg: CfgNode, streams: RunState) -> None:
    """Insert the hooks of exact resuming into Detectron2's.

    Args:
        hooks: changed in place; of the main process or another, which has no checkpointer.
        cfg: when to save and to evaluate.
        streams: of the trainer.
    """
    kinds = [type(hook) for hook in hooks]
    hooks.insert(kinds.index(EvalHook) + 1, AfterEvaluation(cfg, streams))
    first = PeriodicCheckpointer if PeriodicCheckpointer in kinds else EvalHook
    hooks.insert(kinds.index(first), BeforeCheckpoint(cfg, streams))


def get_loaders(trainer: Any, hooks: list[HookBase]) -> list[Any]:
    """The training's loader, and that from which precise BatchNorm statistics are taken."""
    precise = [hook for hook in hooks if isinstance(hook, PreciseBN)]
    return [trainer.data_loader, *(hook._data_loader for hook in precise if not hook._disabled)]
