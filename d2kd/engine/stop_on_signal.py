# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Ctrl-C, SIGTERM and SIGUSR1 in training: the step is finished and a checkpoint is written.

After Ctrl-C and SIGTERM the run ends, and can be resumed. In the last evaluation the final
checkpoint has been written, so these act at once.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm

from ..checkpoint.run_checkpointer import save_step
from ..utils.progress import progress
from .interrupt import EvaluationStopped, Request, current_handler

__all__ = ["Question", "StopOnSignal", "StoppableLoader"]

logger = logging.getLogger(__name__)


class StopOnSignal(HookBase):
    """Writes a checkpoint after the step in which a signal asked for one, and stops if it did.

    It must be the last hook. Several processes must act after the same step, but each receives the
    signal at its own time. They ask each other after every step and read the answers after the next
    one, when these have arrived. So no process waits for another or for its GPU.
    """

    def __init__(self, before_save: Callable[[], None], in_evaluation: Callable[[], bool]):
        """
        Args:
            before_save: called by all processes before the main one writes the checkpoint.
            in_evaluation: whether an evaluation is due that is not the last, and what
                ``before_save`` gathered is of its step.
        """
        self.before_save = before_save
        self.in_evaluation = in_evaluation
        self._question: Question | None = None

    def add_to(self, hooks: Sequence[HookBase]) -> list[HookBase]:
        """The hooks with this one at the end, and one more before Detectron2's EvalHook."""
        added = list(hooks)
        added.insert([type(hook) for hook in added].index(EvalHook), _SkipEvaluation())
        return [*added, self]

    def before_train(self) -> None:
        """Connect to the signal handler, and to the other processes."""
        current_handler().in_evaluation = self.in_evaluation
        if comm.get_world_size() > 1:
            self._question = Question()

    def after_step(self) -> None:
        """Save or stop if a signal has asked for it."""
        asked = current_handler().take()
        if self._question:
            asked = self._question.exchange(asked)
        # After the last step Detectron2 writes the checkpoint; only the evaluation is left.
        if not asked or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        self.before_save()
        save_step(self.trainer.checkpointer, self.trainer.iter)
        if not asked.stops:
            logger.info("Wrote a checkpoint after iteration %d, as asked", self.trainer.iter)
            return
        # The first process to end may end the others, and the main one is still writing.
        comm.synchronize()
        self._stop(asked)

    @contextmanager
    def saving_if_evaluation_stops(self) -> Iterator[None]:
        """Write the checkpoint of a step if SIGTERM ends its evaluation; to be put around hooks.

        The state of all processes was gathered before the evaluation, so none waits for another.
        A resumed run evaluates before it continues.
        """
        try:
            yield
        except EvaluationStopped:
            save_step(self.trainer.checkpointer, self.trainer.iter)
            logger.info(
                "Stopped in the evaluation after iteration %d: add --resume to continue",
                self.trainer.iter,
            )
            raise

    def acting_at_once(self) -> AbstractContextManager[None]:
        """Let signals stop the run at once, as nothing would be lost."""
        return current_handler().acting_at_once()

    def before_last_evaluation(self) -> None:
        """Let signals act at once; to be called by all processes after the last checkpoint.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM was received during the last step.
        """
        current_handler().at_once = True
        answer = self._question.read() if self._question else Request.NOTHING
        asked = max(answer, current_handler().stop)
        if asked.stops:
            self._stop(asked)

    def after_train(self) -> None:
        """Disconnect from the signal handler."""
        current_handler().at_once = False
        current_handler().in_evaluation = lambda: False
        if self._question:
            self._question.read()

    def _stop(self, asked: Request) -> None:
        # The signal may have been another process's.
        current_handler().stop = max(asked, current_handler().stop)
        logger.info("Stopped after iteration %d: add --resume to continue", self.trainer.iter)
        raise KeyboardInterrupt


class _SkipEvaluation(HookBase):
    """Leaves out the evaluation of a step in which SIGTERM was received."""

    def after_step(self) -> None:
        """Raise if SIGTERM was received in this step."""
        current_handler().check_evaluation()


class Question:
    """Asks all processes what their signals asked for; the answer comes one exchange later."""

    def __init__(self) -> None:
        # A group of its own, on the host: its messages are not mixed with others.
        self._group = dist.new_group(backend="gloo")
        self._answer = torch.zeros(1, dtype=torch.int64)
        self._asked: dist.Work | None = None

    def exchange(self, request: Request) -> Request:
        """Tell all processes, and return the answer to the question before (NOTHING at first).

        Args:
            request: of this process.

        Returns:
            The highest request of all processes at the last call; the same in all of them.
        """
        before = self.read()
        self._answer = torch.tensor([int(request)])
        self._asked = dist.all_reduce(
            self._answer, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return before

    def read(self) -> Request:
        """Wait for the answer to the last question and return it."""
        if self._asked is not None:
            self._asked.wait()
            self._asked = None
        return Request(int(self._answer.item()))


class StoppableLoader:
    """A test loader that looks, before each batch, whether a signal has asked to stop.

    On a terminal the main process shows a bar.
    """

    def __init__(self, loader: Any, name: str = ""):
        """
        Args:
            loader: of batches.
            name: of the data set, which stands before the bar.
        """
        self._loader, self._name = loader, name

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        batches = self._loader
        if comm.is_main_process():
            batches = progress(batches, len(self), f"evaluating {self._name}".strip(), "batch")
        for batch in batches:
            current_handler().check_between_batches()
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
