# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The options that the benchmark and the processes it starts have in common."""

import argparse
from pathlib import Path

import torch
from detectron2.config import CfgNode

from .networks import real_batches, synthetic_batches

__all__ = ["as_arguments", "load_batches", "parse_args"]


def parse_args(description: str, args: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, or ``args``; sets the number of threads."""
    parser = argparse.ArgumentParser(description=description)
    _add_options(parser)
    found = parser.parse_args(args)
    if found.steps < 2 or found.warmup < 0 or min(found.size) < 1 or found.batch < 1:
        parser.error("--steps must be 2 or more, --size and --batch above 0, --warmup not below")
    if found.threads:
        torch.set_num_threads(found.threads)
    return found


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True, help="as given to train_net.py")
    parser.add_argument("--json", required=True, type=Path, help="file for the results")
    parser.add_argument("--steps", type=int, default=20, help="timed rounds; medians are over them")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before them")
    parser.add_argument("--size", type=int, nargs=2, default=[160, 160], metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=8, help="images of a synthetic batch")
    parser.add_argument("--boxes", type=int, default=4, help="boxes of a synthetic image")
    parser.add_argument(
        "--data", action="store_true", help="take batches of DATASETS.TRAIN, not synthetic ones"
    )
    parser.add_argument(
        "--random-weights", action="store_true", help="random also where weights are there"
    )
    parser.add_argument(
        "--no-alone", action="store_true", help="leave out steps under one loss alone"
    )
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    memory.add_argument(
        "--keep-memory", action="store_true", help="take it from the file of --json if it is there"
    )
    parser.add_argument("--threads", type=int, help="of the CPU; PyTorch's choice if not given")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override the config")


def as_arguments(args: argparse.Namespace) -> list[str]:
    """What to give another process for the same networks and batches."""
    flags = {"--data": args.data, "--random-weights": args.random_weights}
    values = {"--size": args.size, "--batch": [args.batch], "--boxes": [args.boxes]}
    if args.threads:
        values["--threads"] = [args.threads]
    return [
        *["--config-file", args.config_file, "--json", str(args.json)],
        *[flag for flag, given in flags.items() if given],
        *[str(x) for name, found in values.items() for x in (name, *found)],
        *args.opts,
    ]


def load_batches(cfg: CfgNode, args: argparse.Namespace) -> list[list[dict]]:
    """Synthetic or real, as the arguments say."""
    if args.data:
        return real_batches(cfg)
    return synthetic_batches(cfg, tuple(args.size), args.batch, args.boxes)
