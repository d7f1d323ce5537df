# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What Ctrl-C, SIGTERM and SIGUSR1 ask of a training: to write a checkpoint, and to stop."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

__all__ = [
    "INTERRUPTED",
    "TERMINATED",
    "EvaluationStopped",
    "Request",
    "SignalHandler",
    "current_handler",
    "interruptible",
    "is_same_request",
]

# Exit statuses that shells report after Ctrl-C and SIGTERM: 128 + the signal's number.
INTERRUPTED = 130
TERMINATED = 143
# A scheduler signals every process of a job, and a process passes it on to its children. So a
# process may receive SIGTERM several times, within seconds, for one request.
SAME_REQUEST = 2.0


class Request(IntEnum):
    """What a signal asks for; of several requests the highest counts."""

    NOTHING = 0
    SAVE = 1
    # To stop; these are the exit statuses too.
    INTERRUPT = INTERRUPTED
    TERMINATE = TERMINATED

    @property
    def stops(self) -> bool:
        """Does it end the training?"""
        return self >= Request.INTERRUPT


class EvaluationStopped(KeyboardInterrupt):
    """SIGTERM has ended an evaluation during training; its step has no checkpoint yet."""


def is_same_request(signum: int, since: float | None) -> bool:
    """Whether a signal repeats the request of an earlier SIGTERM.

    Args:
        signum: of the signal.
        since: when SIGTERM was received, by ``time.monotonic``; None if it was not.
    """
    if signum != signal.SIGTERM or since is None:
        return False
    return time.monotonic() - since < SAME_REQUEST


class SignalHandler:
    """Records what signals have asked for; the second request to stop acts at once.

    Attributes:
        at_once: whether the first request to stop acts at once too.
        in_evaluation: whether an evaluation during training is running, which SIGTERM ends.
    """

    def __init__(self) -> None:
        self.stop = Request.NOTHING
        self.at_once = False
        self.in_evaluation: Callable[[], bool] = lambda: False
        self._process = os.getpid()
        self._terminated_at: float | None = None
        # A signal may arrive between any two operations, so what was asked for is only counted up.
        self._saves_asked = self._saves_taken = 0

    def __call__(self, signum: int, frame: object) -> None:
        # Data workers inherit this handler, and have to finish what the step needs.
        if os.getpid() != self._process or is_same_request(signum, self._terminated_at):
            return
        if signum == signal.SIGUSR1:
            self._saves_asked += 1
            return
        first = not self.stop.stops
        self.stop = Request(128 + signum)
        if signum == signal.SIGTERM:
            self._terminated_at = time.monotonic()
        if self.at_once or not first:
            raise KeyboardInterrupt
        _announce(signum)
        self.check_evaluation()

    def check_evaluation(self) -> None:
        """Leave the evaluation if SIGTERM was received.

        Raises:
            EvaluationStopped: an evaluation is running or about to start.
        """
        if self.stop is Request.TERMINATE and self.in_evaluation():
            raise EvaluationStopped

    def check_between_batches(self) -> None:
        """Leave an evaluation whose signal was received where Python could not act on it.

        An exception is lost that a signal handler raises in a callback, such as logging's after a
        fork of a data worker.

        Raises:
            KeyboardInterrupt: a signal asks to stop at once.
            EvaluationStopped: as ``check_evaluation``.
        """
        if self.at_once and self.stop.stops:
            raise KeyboardInterrupt
        self.check_evaluation()

    @contextmanager
    def acting_at_once(self) -> Iterator[None]:
        """Let signals stop the run at once: there is a checkpoint, and no step is under way.

        Raises:
            KeyboardInterrupt: a signal asks to stop, or has before.
        """
        self.at_once = True
        try:
            if self.stop.stops:
                raise KeyboardInterrupt
            yield
        finally:
            self.at_once = False

    def take(self) -> Request:
        """What is asked for now; a checkpoint is asked for once."""
        asked, taken = self._saves_asked, self._saves_taken
        self._saves_taken = asked
        return max(self.stop, Request(asked > taken))


def _announce(signum: int) -> None:
    evaluation = " and its evaluation" if signum == signal.SIGINT else ""
    text = (
        f"Received {signal.Signals(signum).name}: finishing this iteration{evaluation}, then "
        "writing a checkpoint. Press Ctrl-C again, or send SIGTERM again, to stop at once, without "
        "a checkpoint.\n"
    )
    if os.isatty(2):  # where ^C or the progress line stands
        text = f"\n{text}"
    # print may be what the signal has interrupted, and must not be entered twice.
    os.write(2, text.encode())


_current = SignalHandler()
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def current_handler() -> SignalHandler:
    """The handler of the last ``interruptible`` context, or one that has received nothing."""
    return _current


@contextmanager
def interruptible() -> Iterator[None]:
    """Finish the step and write a checkpoint on Ctrl-C, SIGTERM and SIGUSR1.

    After Ctrl-C and SIGTERM the program ends. Enter it before the data loaders are built: data
    workers inherit the signal handler.

    Raises:
        SystemExit: 130 or 143, after Ctrl-C or SIGTERM.
    """
    global _current
    _current = SignalHandler()
    # Only the main thread may set signal handlers.
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, _current) for number in _SIGNALS} if main else {}
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(int(_current.stop) or INTERRUPTED)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _current = SignalHandler()
