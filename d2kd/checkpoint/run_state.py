# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What exact resuming needs beside weights, optimizer and schedule: everything that is random."""

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.utils import comm
from torch import nn

from ..data.resumable_loader import ResumableLoader
from ..utils.rng_state import get_random_state, set_random_state

__all__ = ["RunState"]

logger = logging.getLogger(__name__)


class RunState:
    """A checkpointable of the data order, the data workers and the random streams of a process.

    Each of several processes has its own. The main process writes the checkpoint, so all processes
    must call ``gather`` at the same step before it does.
    """

    def __init__(self, loaders: Sequence[Any], student: nn.Module):
        """
        Args:
            loaders: the loaders of training data. Only a ResumableLoader continues where it was;
                other loaders restart from the beginning.
            student: Detectron2's dense detectors keep the moving normalizer of their losses outside
                their weights; it is saved here.
        """
        self.loaders = [x for x in loaders if isinstance(x, ResumableLoader)]
        self.student = student
        # Whether the evaluation of this step is still to come; it draws random numbers too.
        self.evaluation_due = False
        self._gathered: list[dict[str, Any]] | None = None
        self._random: dict[str, Any] | None = None
        self._evaluation_missing = False

    def gather(self) -> None:
        """Bring the states of all processes to the main one; to be called by all of them.

        A single process keeps its state only while the evaluation of the step is due, which changes
        it. Otherwise a checkpoint holds the state at the time of writing.
        """
        if comm.get_world_size() > 1:
            self._gathered = comm.gather(self._get())
        else:
            self._gathered = [self._get()] if self.evaluation_due else None

    def discard(self) -> None:
        """Drop the gathered states, which are of an earlier step."""
        self._gathered = None

    def _get(self) -> dict[str, Any]:
        return {
            "random": get_random_state(),
            "loaders": [loader.state_dict() for loader in self.loaders],
            # Detectron2's RetinaNet and FCOS have one, its R-CNN has not.
            "normalizer": getattr(self.student, "loss_normalizer", None),
            "evaluation_due": self.evaluation_due,
        }

    def state_dict(self) -> dict[str, Any]:
        """The states of all processes: as gathered, or of now in a single process."""
        if self._gathered is None and comm.get_world_size() == 1:
            return {"processes": [self._get()]}
        return {"processes": self._gathered or []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the loaders; the random streams wait for ``restore``."""
        processes = state["processes"]
        if len(processes) != comm.get_world_size():
            logger.warning(
                "The checkpoint was written by %d process(es) and is resumed by %d: data order and "
                "random numbers differ from those of a run without a break",
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
        """Warn if the checkpoint that was loaded had no state of this process.

        Checkpoints of stock Detectron2 have none.
        """
        if self._random is None:
            logger.warning(
                "The checkpoint has no state of this process: its data order and random numbers "
                "restart from the beginning"
            )

    def restore(self) -> bool:
        """Set the random streams; to be called last before the first step.

        Returns:
            Whether the run was stopped between a checkpoint and the evaluation of its step.
        """
        if self._random is not None:
            set_random_state(self._random)
        missing, self._random, self._evaluation_missing = self._evaluation_missing, None, False
        return missing
