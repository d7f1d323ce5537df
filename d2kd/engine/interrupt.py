# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Ctrl-C in training: the step is finished, a checkpoint is written, and the run can be resumed.

In the last evaluation the final checkpoint has been written, so Ctrl-C acts at once.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint.run_checkpointer import save_step

__all__ = ["INTERRUPTED", "StopOnInterrupt", "interruptible"]

# The exit status that shells report after Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130

logger = logging.getLogger(__name__)


class _Interrupt:
    """A signal handler that remembers the first Ctrl-C and lets the second act as usual.

    If ``at_once`` is set, the first acts as usual too.
    """

    def __init__(self):
        self.received = False
        self.at_once = False
        self.process = os.getpid()

    def __call__(self, signum, frame) -> None:
        # Data workers inherit this handler; without it they would end in the middle of a step.
        in_worker = os.getpid() != self.process
        self.received = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.at_once and not in_worker:
            raise KeyboardInterrupt
        if not in_worker:
            print(
                "Interrupted: finishing this iteration and its evaluation, then writing a "
                "checkpoint. Press Ctrl-C again to stop at once, without a checkpoint.",
                file=sys.stderr,
                flush=True,
            )


_current = _Interrupt()


@contextmanager
def interruptible() -> Iterator[None]:
    """Finish the step and write a checkpoint on Ctrl-C, then end the program with status 130.

    Enter it before the data loaders are built: data workers inherit the signal handler.

    Raises:
        SystemExit: 130, after a KeyboardInterrupt.
    """
    global _current
    _current = _Interrupt()
    # Only the main thread may set signal handlers.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, _current) if main else None
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        _current.received = False
        if main:
            signal.signal(signal.SIGINT, before)


class StopOnInterrupt(HookBase):
    """Writes a checkpoint and stops after the step in which Ctrl-C was pressed.

    It must be the last hook. Several processes must stop after the same step, but each receives the
    signal at its own time. They ask each other after every step and read the answers after the next
    one, when these have arrived. So no process waits for another or for its GPU.
    """

    def __init__(self, before_save: Callable[[], None] = lambda: None):
        """
        Args:
            before_save: called by all processes before the main one writes the checkpoint.
        """
        self.before_save = before_save
        self._question: Question | None = None

    def before_train(self) -> None:
        if comm.get_world_size() > 1:
            self._question = Question()

    def after_step(self) -> None:
        wanted = self._question.exchange(_current.received) if self._question else _current.received
        # After the last step Detectron2 writes the checkpoint; only the evaluation is left.
        if not wanted or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        self.before_save()
        save_step(self.trainer.checkpointer, self.trainer.iter)
        # The first process to end may end the others, and the main one is still writing.
        comm.synchronize()
        logger.info("Interrupted after iteration %d: add --resume to continue", self.trainer.iter)
        raise KeyboardInterrupt

    def before_last_evaluation(self) -> None:
        """Let Ctrl-C act at once; to be called by all processes after the last checkpoint.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed during the last step.
        """
        _current.at_once = True
        if (self._question and self._question.read()) or _current.received:
            raise KeyboardInterrupt

    def after_train(self) -> None:
        _current.at_once = False
        if self._question:
            self._question.read()


class Question:
    """Asks all processes whether any of them says yes; the answer comes one exchange later."""

    def __init__(self):
        # A group of its own, on the host: its messages are not mixed with others.
        self._group = dist.new_group(backend="gloo")
        self._answer = torch.zeros(1)
        self._asked: dist.Work | None = None

    def exchange(self, yes: bool) -> bool:
        """Ask all processes, and return the answer to the question before (False at first).

        Args:
            yes: what this process says.

        Returns:
            Whether any process said yes at the last call; the same in all processes.
        """
        before = self.read()
        self._answer = torch.tensor([float(yes)])
        self._asked = dist.all_reduce(self._answer, group=self._group, async_op=True)
        return before

    def read(self) -> bool:
        """Wait for the answer to the last question and return it."""
        if self._asked is not None:
            self._asked.wait()
            self._asked = None
        return self._answer.item() > 0
