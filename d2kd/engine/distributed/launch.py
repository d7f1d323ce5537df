# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Starts the processes that the command line asks for: one, several, or torchrun's."""

import os
import socket
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode

from ...utils.command_line import add_traceback_option, exit_on_user_error
from ...utils.errors import ConfigError
from .process_group import Group, join_group, leave_group
from .worker_processes import run_children

__all__ = ["add_launch_options", "check_images", "launch", "plan_group"]


def add_launch_options(parser: ArgumentParser) -> None:
    """Add ``--num-processes`` and ``--traceback`` to Detectron2's ``default_argument_parser``."""
    # Detectron2's default is one port for each user, which two trainings at once would share.
    parser.set_defaults(dist_url="auto")
    parser.add_argument(
        "--num-processes",
        type=int,
        metavar="N",
        help="processes *per machine* where MODEL.DEVICE is cpu (as --num-gpus for cuda)",
    )
    add_traceback_option(parser)


def launch(main: Callable, args: Namespace, cfg: CfgNode, arguments: Sequence[Any] = ()) -> None:
    """Call ``main(*arguments)`` in every process that the command line asks for.

    A single process is this one. Detectron2 0.6's ``launch`` starts processes for GPUs only.

    Args:
        main: a function of a module that can be imported.
        args: parsed by ``default_argument_parser`` with ``add_launch_options``.
        cfg: the config of the training; MODEL.DEVICE and SOLVER.IMS_PER_BATCH are read.
        arguments: of ``main``; they must be picklable.

    Raises:
        ConfigError: there are too few GPUs, options contradict each other, or the batch cannot be
            divided among the processes.
        SystemExit: 2 if a process ended by a user's mistake, 1 if one failed otherwise, 130 after
            Ctrl-C, 143 after SIGTERM.
    """
    group = plan_group(args, cfg.MODEL.DEVICE)
    # With SOLVER.REFERENCE_WORLD_SIZE, Detectron2 scales the batch to the processes.
    if not args.eval_only and not cfg.SOLVER.REFERENCE_WORLD_SIZE:
        check_images(cfg.SOLVER.IMS_PER_BATCH, group.size)
    if group.address == "env://":
        _run(int(os.environ["LOCAL_RANK"]), group, main, *arguments)
    elif group.size == 1:
        main(*arguments)
    else:
        ranks = range(group.per_machine)
        calls = {
            f"rank {group.rank(i)}": (args.traceback, i, group, main, *arguments) for i in ranks
        }
        run_children(_run_child, calls)


def _run_child(show_traceback: bool, *arguments: Any) -> None:
    with exit_on_user_error(show_traceback):
        _run(*arguments)


def _run(local_rank: int, group: Group, main: Callable, *arguments: Any) -> None:
    join_group(group, local_rank)
    main(*arguments)
    leave_group()


def plan_group(args: Namespace, device: str) -> Group:
    """The processes that the command line asks for; see ``launch``.

    Raises:
        ConfigError: names the option or key to change.
    """
    kind, available = torch.device(device).type, torch.cuda.device_count()
    if kind == "cuda" and not available:
        raise ConfigError(
            f"MODEL.DEVICE is {device} and there is no GPU here: add MODEL.DEVICE cpu to the "
            "command"
        )
    if "TORCHELASTIC_RUN_ID" in os.environ:
        group = _plan_of_torchrun(args, kind)
    else:
        count = _count_on_cpu(args) if kind == "cpu" else _count_on_gpu(args, kind)
        address = _address(args, args.num_machines)
        group = Group(kind, count, args.num_machines, args.machine_rank, address)
    if not 0 <= group.machine_rank < group.machines:
        raise ConfigError(
            f"--machine-rank is {group.machine_rank}: with --num-machines {group.machines} set it "
            f"to 0 .. {group.machines - 1}"
        )
    if group.size > 1 and device != kind:
        raise ConfigError(
            f"MODEL.DEVICE is {device!r}, which is one device for several processes: set it to "
            f"{kind!r}"
        )
    if kind == "cuda" and group.size > 1 and group.per_machine > available:
        raise ConfigError(
            f"{group.per_machine} GPUs are requested and this machine has {available}: "
            "lower --num-gpus (torchrun's --nproc_per_node), or set MODEL.DEVICE to cpu and use "
            "--num-processes"
        )
    return group


def _plan_of_torchrun(args: Namespace, kind: str) -> Group:
    """The group that torchrun has started, read from its environment variables."""
    asked = {
        "--num-gpus": args.num_gpus > 1,
        "--num-processes": args.num_processes is not None,
        "--num-machines": args.num_machines > 1,
    }
    if any(asked.values()):
        names = ", ".join(name for name, given in asked.items() if given)
        raise ConfigError(f"torchrun decides how many processes there are: leave out {names}")
    size, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if size % local:
        raise ConfigError(
            f"{local} of {size} processes are on this machine: give every machine the same "
            "--nproc_per_node"
        )
    return Group(kind, local, size // local, int(os.environ["GROUP_RANK"]))


def _count_on_cpu(args: Namespace) -> int:
    if args.num_gpus > 1:
        raise ConfigError(
            f"--num-gpus is {args.num_gpus} and MODEL.DEVICE is cpu: use --num-processes "
            f"{args.num_gpus} for as many processes on the CPU"
        )
    count = 1 if args.num_processes is None else args.num_processes
    if count < 1:
        raise ConfigError(f"--num-processes is {count}: set it to 1 or more")
    return count


def _count_on_gpu(args: Namespace, kind: str) -> int:
    if args.num_processes is not None:
        raise ConfigError(
            f"--num-processes is for CPUs and MODEL.DEVICE is {kind}: use --num-gpus "
            f"{args.num_processes}, or set MODEL.DEVICE to cpu"
        )
    return max(1, args.num_gpus)


def _address(args: Namespace, machines: int) -> str:
    """--dist-url, or for "auto" a free port of this machine, if it is the only one."""
    if args.dist_url != "auto":
        return args.dist_url
    if machines > 1:
        raise ConfigError(
            "--dist-url is 'auto' and there are several machines: set it to tcp://HOST:PORT of the "
            "one with --machine-rank 0, the same for all"
        )
    return f"tcp://127.0.0.1:{_free_port()}"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def check_images(images: int, processes: int) -> None:
    """Check that the batch can be divided equally among the processes.

    Args:
        images: SOLVER.IMS_PER_BATCH, of all processes together.
        processes: how many.

    Raises:
        ConfigError: names the two nearest values that fit.
    """
    if images % processes:
        below = images // processes * processes
        fits = " or ".join(str(n) for n in (below, below + processes) if n)
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {images} for {processes} processes, which take an equal part "
            f"each: set it to {fits}"
        )
