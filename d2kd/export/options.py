# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The command line of the export."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ..utils.common_arguments import add_common_arguments
from .tolerance import TOLERANCES

__all__ = ["parse_args"]


def parse_args(description: str, arguments: Sequence[str] | None) -> Namespace:
    """Read the options.

    Raises:
        SystemExit: 2, if one is wrong.
    """
    parser = ArgumentParser(
        description=description, epilog="Exit status 2: the file does not agree with PyTorch."
    )
    add_common_arguments(parser, output_help="file to write: NAME.onnx, NAME.ts or NAME.pt2")
    _add_file_options(parser)
    _add_check_options(parser)
    args = parser.parse_args(arguments)
    if args.output is None:
        parser.error("set --output to the file to write: NAME.onnx, NAME.ts or NAME.pt2")
    counts = (args.images, args.eval_images, args.batch)
    if min(counts) < 0 or min(args.calibration_images, args.rounds, args.threads) < 1:
        parser.error(
            "set --images, --eval-images and --batch to 0 or above, and --calibration-images, "
            "--rounds and --threads above 0"
        )
    if args.size and min(args.size) < 32:
        parser.error("set both numbers of --size to 32 or above")
    return args


def _add_file_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--weights", default="", help="checkpoint of the student; by default MODEL.WEIGHTS"
    )
    parser.add_argument(
        "--precision",
        choices=list(TOLERANCES),
        default="float32",
        help="of the networks; int8 for .onnx alone",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="fixed height and width of the input; by default any",
    )
    parser.add_argument(
        "--batch", type=int, default=0, help="fixed number of images; by default 0, any number"
    )
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=64,
        help="training images that int8 takes its ranges from",
    )


def _add_check_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        type=int,
        default=16,
        help="images on which the file is compared with PyTorch, and timed; 0 for none",
    )
    parser.add_argument(
        "--eval-images",
        type=int,
        default=100,
        help="images of each test set whose AP is measured; 0 for none",
    )
    for what, unit in (("box", "in pixels"), ("score", "from 0 to 1")):
        parser.add_argument(
            f"--max-{what}-difference",
            type=float,
            help=f"difference of a {what} from PyTorch's that is allowed, {unit}; by default as "
            "docs/deploy.md says",
        )
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--no-teacher", action="store_true", help="do not time the teacher")
