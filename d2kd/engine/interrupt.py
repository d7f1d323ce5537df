"""Ctrl-C in training: the step is finished, a checkpoint written, and the run can be resumed."""

import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import Iterator

from detectron2.engine import HookBase
from detectron2.utils import comm

__all__ = ["INTERRUPTED", "StopOnInterrupt", "interruptible"]

# What a shell reports of a program that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED = 130

logger = logging.getLogger(__name__)


class _Interrupt:
    """Remembers the first Ctrl-C; the second one acts as usual."""

    def __init__(self):
        self.received = False
        self.process = os.getpid()

    def __call__(self, signum, frame) -> None:
        self.received = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Data workers inherit this handler, and would otherwise die in the middle of a step.
        if os.getpid() == self.process:
            print(
                "Interrupted: finishing this iteration and writing a checkpoint; press Ctrl-C again "
                "to stop at once, without.",
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
    """Between two steps, after all other hooks: writes a checkpoint if Ctrl-C came meanwhile."""

    def __init__(self, period: int = 10):
        """
        Args:
            period: steps after which several processes ask each other; one process looks at every
                step.
        """
        self.period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        # The end of training writes a checkpoint itself.
        if done >= self.trainer.max_iter or not self._wanted(done):
            return
        name = f"model_{self.trainer.iter:07d}"
        self.trainer.checkpointer.save(name, iteration=self.trainer.iter)
        logger.info("Interrupted after iteration %d; --resume continues it", self.trainer.iter)
        raise KeyboardInterrupt

    def _wanted(self, done: int) -> bool:
        """All processes must leave at the same step, though each is told at its own time."""
        if comm.get_world_size() == 1:
            return _current.received
        return done % self.period == 0 and any(comm.all_gather(_current.received))
