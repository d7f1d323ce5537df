# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Write a trained student as ONNX, TorchScript or torch.export, and check the file."""

import logging
from collections.abc import Sequence

from ..utils.command_line import exit_on_user_error
from .options import parse_args
from .run import export

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file, and print what was measured.

    Args:
        arguments: of the command line; None for ``sys.argv``.

    Raises:
        SystemExit: 2, if something cannot be exported, or the file does not agree with PyTorch.
    """
    args = parse_args(__doc__.splitlines()[0], arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with exit_on_user_error(args.traceback):
        export(args, say=lambda line: print(line, flush=True))
