# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Child processes that receive this process's signals and end with it."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from ...utils.command_line import USER_ERROR_STATUS
from ...utils.end_with_parent import end_with_parent
from ..interrupt import INTERRUPTED, TERMINATED, is_same_request

__all__ = ["run_children"]

# A process that has used a GPU cannot be forked.
START_METHOD = "spawn"
# Seconds that the other processes have to print their errors and end after one has failed.
GRACE = 5.0
# The same after one has ended on a signal: the main process may be writing the checkpoint.
SAVING = 20.0


def run_children(function: Callable, calls: Mapping[str, Sequence[Any]]) -> None:
    """Run ``function(*arguments)`` in a process for each of ``calls`` and wait for all of them.

    If one fails, the others are stopped. Each receives Ctrl-C, SIGTERM and SIGUSR1 of this process,
    and this process waits until they have ended. A second SIGTERM stops them at once. If this
    process is killed, they end too.

    Args:
        function: of a module that can be imported.
        calls: name of the process, for messages -> arguments, which must be picklable.

    Raises:
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM, 2 if a process ended by a user's mistake, 1
            if one failed otherwise. It has written its error by then.
    """
    context: Any = multiprocessing.get_context(START_METHOD)
    children = [
        context.Process(target=_child, args=(function, *arguments), name=name)
        for name, arguments in calls.items()
    ]
    try:
        with _pass_on_signals(children):
            for child in children:
                child.start()
            first_to_fail = _wait_for_all(children)
    finally:
        _stop(children)
    if not first_to_fail:
        return
    status = _status_of_signal(first_to_fail)
    if status:
        sys.exit(status)
    ends = ", ".join(f"{child.name} {_describe(child.exitcode)}" for child in first_to_fail)
    print(f"{ends}; the other processes were stopped.", file=sys.stderr, flush=True)
    mistaken = all(child.exitcode == USER_ERROR_STATUS for child in first_to_fail)
    sys.exit(USER_ERROR_STATUS if mistaken else 1)


def _child(function: Callable, *arguments: Any) -> None:
    # A terminal sends Ctrl-C to all processes in its foreground, also to data workers. In a session
    # of its own, a child receives it once, from its parent.
    os.setsid()
    end_with_parent()
    try:
        function(*arguments)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _status_of_signal(children: list[BaseProcess]) -> int:
    """The exit status if Ctrl-C or SIGTERM has ended one of the processes, else 0."""
    ends = {child.exitcode for child in children}
    # A process that has not begun to train has no handler yet.
    if ends & {TERMINATED, -signal.SIGTERM}:
        return TERMINATED
    return INTERRUPTED if INTERRUPTED in ends else 0


class _PassOn:
    """A signal handler that sends what it receives to all processes."""

    def __init__(self, children: list[BaseProcess]):
        self.children = children
        self._terminated_at: float | None = None

    def __call__(self, signum: int, frame: object) -> None:
        if is_same_request(signum, self._terminated_at):
            return
        # A process has no id before it is started.
        started = [child for child in self.children if child.pid is not None]
        for child in started:
            if child.is_alive():
                os.kill(child.pid, signum)
        if signum == signal.SIGTERM:
            if self._terminated_at is not None or len(started) < len(self.children):
                sys.exit(TERMINATED)
            self._terminated_at = time.monotonic()


@contextmanager
def _pass_on_signals(children: list[BaseProcess]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may set signal handlers.
        return
    pass_on = _PassOn(children)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_all(children: list[BaseProcess]) -> list[BaseProcess]:
    """Wait for all, or only GRACE (SAVING) after a failure; returns those that failed first."""
    running, failed, until = list(children), [], None
    while running:
        left: float | None = None if until is None else max(0.0, until - time.monotonic())
        ended = wait([child.sentinel for child in running], timeout=left)
        if not ended:
            break
        done = [child for child in running if child.sentinel in ended]
        running = [child for child in running if child not in done]
        for child in done:
            child.join()
        if until is None and any(child.exitcode for child in done):
            failed = [child for child in done if child.exitcode]
            until = time.monotonic() + (SAVING if _status_of_signal(failed) else GRACE)
    return failed


def _stop(children: list[BaseProcess]) -> None:
    """Terminate the processes that still run, and kill those that do not end."""
    started = [child for child in children if child.pid is not None]
    for child in started:
        child.terminate()
    until = time.monotonic() + GRACE
    for child in started:
        child.join(max(0.0, until - time.monotonic()))
        if child.is_alive():
            child.kill()
            child.join()


def _describe(exitcode: int) -> str:
    if exitcode < 0:
        return f"was ended by {signal.Signals(-exitcode).name}"
    return f"ended with status {exitcode}, its error is printed above"
