# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The command-line options of the benchmark and of the processes that it starts."""

import argparse
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from ..utils.command_line import add_import_option
from ..utils.common_arguments import add_common_arguments
from .networks import real_batches, synthetic_batches

__all__ = ["as_arguments", "load_batches", "parse_args"]


def parse_args(description: str, args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, or ``args``, and set PyTorch's number of threads."""
    parser = argparse.ArgumentParser(description=description)
    _add_options(parser)
    found = parser.parse_args(args)
    if found.steps < 2 or found.warmup < 0 or min(found.size) < 1 or found.batch < 1:
        parser.error(
            "set --steps to 2 or more, --size and --batch to 1 or more, --warmup to 0 or more"
        )
    if found.keep_memory and not found.output:
        parser.error("--keep-memory reads the file of --output: set it")
    if found.threads:
        torch.set_num_threads(found.threads)
    return found


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_common_arguments(parser, output_help="JSON file for the results; none by default")
    add_import_option(parser)
    parser.add_argument("--steps", type=int, default=20, help="timed rounds; results are medians")
    parser.add_argument("--warmup", type=int, default=3, help="untimed rounds before them")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=[160, 160],
        metavar=("H", "W"),
        help="height and width of a synthetic image in pixels",
    )
    parser.add_argument("--batch", type=int, default=8, help="images in a synthetic batch")
    parser.add_argument("--boxes", type=int, default=4, help="boxes in a synthetic image")
    parser.add_argument(
        "--data", action="store_true", help="use batches of DATASETS.TRAIN, not synthetic ones"
    )
    parser.add_argument(
        "--random-weights", action="store_true", help="use random weights even if there are others"
    )
    parser.add_argument(
        "--no-alone", action="store_true", help="do not time steps with one loss alone"
    )
    parser.add_argument(
        "--cache",
        default="",
        metavar="WHERE",
        help="also time steps with a teacher cache, empty and full: 'memory', or an existing "
        "folder, in which a temporary one is made",
    )
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    memory.add_argument(
        "--keep-memory", action="store_true", help="keep the peak memory that --output has"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; by default PyTorch's choice")


def as_arguments(args: argparse.Namespace) -> list[str]:
    """The command line that gives another process the same networks and batches."""
    flags = {"--data": args.data, "--random-weights": args.random_weights}
    values = {"--size": args.size, "--batch": [args.batch], "--boxes": [args.boxes]}
    if args.threads:
        values["--threads"] = [args.threads]
    return [
        *["--config-file", args.config_file],
        *[word for name in args.modules for word in ("--import", name)],
        *[flag for flag, given in flags.items() if given],
        *[str(x) for name, found in values.items() for x in (name, *found)],
        *args.opts,
    ]


def load_batches(cfg: CfgNode, args: argparse.Namespace) -> list[list[dict]]:
    """Batches of the training set if ``--data`` is given, synthetic ones otherwise."""
    if args.data:
        return real_batches(cfg)
    return synthetic_batches(cfg, tuple(args.size), args.batch, args.boxes)
