# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Processes that this one starts, passes signals on to, and lets nobody outlive."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from ...utils.command_line import USER_ERROR_STATUS
from ..interrupt import INTERRUPTED

__all__ = ["run_children"]

# "spawn" because a process that has used a GPU cannot be forked.
START_METHOD = "spawn"
# Seconds that the others have, once one has failed, to say what they know and to end.
GRACE = 5.0


def run_children(function: Callable, calls: dict[str, Sequence[Any]]) -> None:
    """Run ``function(*arguments)`` in a process for each of ``calls`` and wait for all of them.

    The first that fails ends the others. Ctrl-C and SIGTERM are passed on, once each. If this
    process is killed, they end as well.

    Args:
        function: of a module, as are the arguments: they are pickled.
        calls: name of the process, for messages -> arguments.

    Raises:
        SystemExit: 130 after Ctrl-C, 2 if a process ended by a user's mistake, 1 if one failed
            otherwise. It has written its error by then.
    """
    context = multiprocessing.get_context(START_METHOD)
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
    if any(child.exitcode == INTERRUPTED for child in first_to_fail):
        sys.exit(INTERRUPTED)
    ends = ", ".join(f"{child.name} {_describe(child.exitcode)}" for child in first_to_fail)
    print(f"{ends}; the other processes were stopped.", file=sys.stderr, flush=True)
    mistaken = all(child.exitcode == USER_ERROR_STATUS for child in first_to_fail)
    sys.exit(USER_ERROR_STATUS if mistaken else 1)


def _child(function: Callable, *arguments: Any) -> None:
    # A terminal sends Ctrl-C to everything in its foreground: our parent passes it on instead, so
    # that it comes once, and not to the workers that load data.
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        function(*arguments)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _end_with_parent() -> None:
    """Die as soon as the parent has, even where a GPU or a socket is being waited for."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _pass_on_signals(children: list[BaseProcess]) -> Iterator[None]:
    def pass_on(signum, frame) -> None:
        for child in children:
            # None before it is started; a process that has ended is left alone.
            if child.pid is not None and child.is_alive():
                os.kill(child.pid, signum)
        if signum == signal.SIGTERM:
            sys.exit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone.
        return
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_all(children: list[BaseProcess]) -> list[BaseProcess]:
    """Wait for all, or after the first failure for GRACE; returns who failed first."""
    running, failed, until = list(children), [], None
    while running:
        left = None if until is None else max(0.0, until - time.monotonic())
        ended = wait([child.sentinel for child in running], timeout=left)
        if not ended:
            break
        done = [child for child in running if child.sentinel in ended]
        running = [child for child in running if child not in done]
        for child in done:
            child.join()
        if until is None and any(child.exitcode for child in done):
            failed = [child for child in done if child.exitcode]
            until = time.monotonic() + GRACE
    return failed


def _stop(children: list[BaseProcess]) -> None:
    """Ask those that still run to end, and kill those that do not."""
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
    return f"ended with status {exitcode}, its error stands above"
