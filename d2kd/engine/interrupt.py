# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Ctrl-C in training: the step is finished, a checkpoint written, and the run can be resumed.

In the last evaluation, when that is done already, it acts at once.
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

# What a shell reports of a program that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED = 130

logger = logging.getLogger(__name__)


class _Interrupt:
    """Remembers the first Ctrl-C; the second one acts as usual, and all once ``at_once`` is set."""

    def __init__(self):
        self.received = False
        self.at_once = False
        self.process = os.getpid()

    def __call__(self, signum, frame) -> None:
        # Data workers inherit this handler, and would otherwise die in the middle of a step.
        in_worker = os.getpid() != self.process
        self.received = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.at_once and not in_worker:
            raise KeyboardInterrupt
        if not in_worker:
            print(
                "Interrupted: finishing this iteration, with an evaluation that belongs to it, and "
                "writing a checkpoint; press Ctrl-C again to stop at once, without.",
                file=sys.stderr,
                flush=True,
            )


_current = _Interrupt()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the training inside end orderly on Ctrl-C, and the program with status 130.

    Enter it before the data loaders are built.

    Raises:
        SystemExit: 130, after a KeyboardInterrupt.
    """
    global _current
    _current = _Interrupt()
    # Python delivers signals to the main thread, and lets nobody else ask for them.
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
    """Between two steps, after all other hooks: writes a checkpoint if Ctrl-C came meanwhile.

    Several processes must leave at the same step, though each is told at its own time: they ask
    each other after every step and read the answers after the next one, when they have long been
    there. So none waits for another, nor for its GPU.
    """

    def __init__(self, before_save: Callable[[], None] = lambda: None):
        """
        Args:
            before_save: called by all processes; only the main one then writes a checkpoint.
        """
        self.before_save = before_save
        self._question: Question | None = None

    def before_train(self) -> None:
        if comm.get_world_size() > 1:
            self._question = Question()

    def after_step(self) -> None:
        wanted = self._question.exchange(_current.received) if self._question else _current.received
        # The end of training writes a checkpoint itself; what then is left is the evaluation.
        if not wanted or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        self.before_save()
        save_step(self.trainer.checkpointer, self.trainer.iter)
        # Who leaves first may end the others, and one of them writes.
        comm.synchronize()
        logger.info("Interrupted after iteration %d; --resume continues it", self.trainer.iter)
        raise KeyboardInterrupt

    def before_last_evaluation(self) -> None:
        """To be called by all processes when the last step's checkpoint is written.

        Raises:
            KeyboardInterrupt: Ctrl-C came in the last step. From here on it raises this itself.
        """
        _current.at_once = True
        if (self._question and self._question.read()) or _current.received:
            raise KeyboardInterrupt

    def after_train(self) -> None:
        _current.at_once = False
        if self._question:
            self._question.read()


class Question:
    """Whether any process says yes, one exchange late."""

    def __init__(self):
        # Of its own, on the host, so that its messages meet no others.
        self._group = dist.new_group(backend="gloo")
        self._answer = torch.zeros(1)
        self._asked: dist.Work | None = None

    def exchange(self, yes: bool) -> bool:
        """Ask all processes; returns whether any said yes the last time, for all the same."""
        before = self.read()
        self._answer = torch.tensor([float(yes)])
        self._asked = dist.all_reduce(self._answer, group=self._group, async_op=True)
        return before

    def read(self) -> bool:
        """The answer to the latest question."""
        if self._asked is not None:
            self._asked.wait()
            self._asked = None
        return self._answer.item() > 0
