# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Child processes that end when the process that started them has ended, whatever ended it."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Set

from torch.utils.data import get_worker_info

__all__ = ["end_with_parent", "guard_data_worker"]

# Seconds between two looks at the parent.
PERIOD = 1.0
# What a terminal or a scheduler sends to all processes of a training. Only the training answers.
_GROUP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})

# The process that is guarded already: a forked process inherits this value, but not the thread.
_guarded = 0


def guard_data_worker() -> None:
    """In a data worker: end with its parent, and leave the parent's signals to the parent.

    PyTorch's data workers check their parent only while they wait for work. A worker that still
    has samples to deliver waits for its parent forever. To be called in the worker's main thread,
    before its first sample; in other processes, and when called again, it does nothing.
    """
    global _guarded
    if get_worker_info() is None or _guarded == os.getpid():
        return
    _guarded = os.getpid()
    # Threads inherit the mask: only the watching thread takes these signals. macOS has no
    # sigtimedwait; a worker is ended by SIGTERM there.
    shielded = _GROUP_SIGNALS if hasattr(signal, "sigtimedwait") else frozenset[signal.Signals]()
    signal.pthread_sigmask(signal.SIG_BLOCK, shielded)
    end_with_parent(shielded)


def end_with_parent(shielded: Set[signal.Signals] = frozenset()) -> None:
    """Kill this process within PERIOD seconds of its parent's end, even while it waits for a GPU.

    Args:
        shielded: signals that all threads block and that are dropped, except a SIGTERM of the
            parent itself: DataLoader and multiprocessing end their processes by it.
    """
    threading.Thread(target=_watch, args=(os.getppid(), shielded), daemon=True).start()


def _watch(parent: int, shielded: Set[signal.Signals]) -> None:
    started_by = multiprocessing.parent_process()
    # The second question is for a parent that ended before the first was asked, and for a fork
    # server, which is the parent in the system's eyes.
    while os.getppid() == parent and (started_by is None or started_by.is_alive()):
        if not shielded:
            time.sleep(PERIOD)
            continue
        received = signal.sigtimedwait(shielded, PERIOD)
        if received and received.si_signo == signal.SIGTERM and received.si_pid == parent:
            # As PyTorch's own handler in data workers: the parent takes another status for a fault.
            os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
