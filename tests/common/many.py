# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Processes for tests: started in milliseconds, because one server has imported everything."""

import multiprocessing
import socket

from detectron2.engine import default_argument_parser

from d2kd.engine.distributed.launch import add_launch_options

PRELOAD = ["pytest", "detectron2.engine", "d2kd.engine.distributed.launch", "tests.common.helpers"]


def fast_start(monkeypatch):
    """Let ``run_children`` fork from a server instead of starting Python anew."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    monkeypatch.setattr("d2kd.engine.distributed.worker_processes.START_METHOD", "forkserver")


def free_address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{found.getsockname()[1]}"


def options(**given):
    """The command line ``--num-processes 2 ...`` of ``num_processes=2, ...``, parsed."""
    parser = default_argument_parser()
    add_launch_options(parser)
    words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items()]
    return parser.parse_args([word for pair in words for word in pair])
