# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Draw what a config compares on training images: masks, features, regions, boxes, detections."""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..utils.command_line import exit_on_user_error
from ..utils.common_arguments import add_common_arguments
from .run import visualize

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a picture of each image and print its path.

    Args:
        arguments: of the command line; None for ``sys.argv``.

    Raises:
        SystemExit: 2, if an option, the config, the data or the weights are wrong.
    """
    args = _parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # fvcore lists what a checkpoint lacks; that is checked here.
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)
    with exit_on_user_error(args.traceback):
        visualize(
            args.config_file,
            args.opts,
            args.output,
            images=args.images,
            seed=args.seed,
            weights=args.weights,
            say=lambda path: print(path, flush=True),
        )


def _parse_args(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__)
    add_common_arguments(
        parser,
        output_help="folder for a PNG of each image (default: %(default)s)",
        output=Path("pictures"),
    )
    parser.add_argument("--images", type=int, default=4, help="how many (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, help="of the choice of images (default: the config's SEED, or 0)"
    )
    parser.add_argument(
        "--weights",
        help="a checkpoint of a run of this config: draw the student there beside its start",
    )
    args = parser.parse_args(arguments)
    if args.images < 1 or (args.seed is not None and args.seed < 0):
        parser.error("set --images to 1 or more, and --seed to 0 or more")
    return args
