"""Processes for tests: started in milliseconds, because one server has imported everything."""

import multiprocessing
import socket
from types import SimpleNamespace

PRELOAD = ["pytest", "detectron2.engine", "d2kd.engine.launch", "helpers"]


def fast_start(monkeypatch):
    """Let ``run_children`` fork from a server instead of starting Python anew."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    monkeypatch.setattr("d2kd.engine.children.START_METHOD", "forkserver")


def free_address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{found.getsockname()[1]}"


def options(**given):
    """The command line's, of one process on one machine where nothing else is given."""
    defaults = {
        "num_gpus": 1,
        "num_processes": None,
        "num_machines": 1,
        "machine_rank": 0,
        "dist_url": "auto",
        "eval_only": False,
    }
    return SimpleNamespace(**{**defaults, **given})
