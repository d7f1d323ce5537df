# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The command-line arguments that the doctor, the benchmark and the demo share."""

from argparse import ArgumentParser
from pathlib import Path

from .command_line import add_traceback_option

__all__ = ["add_common_arguments"]


def add_common_arguments(
    parser: ArgumentParser,
    *,
    output_help: str,
    config_file: str | None = None,
    required: bool = True,
    output: Path | None = None,
) -> None:
    """Add ``--config-file``, ``--output``, ``--traceback`` and the trailing ``KEY VALUE`` pairs.

    Args:
        output_help: what the command writes to ``--output``.
        config_file: the default.
        required: the option must be given where there is no default.
        output: the default path.
    """
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        default=config_file,
        required=required and config_file is None,
        help="a config as train_net.py takes it",
    )
    parser.add_argument("--output", type=Path, metavar="PATH", default=output, help=output_help)
    add_traceback_option(parser)
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="values that override the config's"
    )
