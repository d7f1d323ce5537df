# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Fill the teacher cache of a config, so that a training runs the teacher's backbone no more."""

import time
from argparse import ArgumentParser
from collections.abc import Sequence

from ..utils.command_line import add_import_option, add_traceback_option, exit_on_user_error
from .fill import fill_cache

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the cache as the command line says, with a progress bar.

    Args:
        arguments: of the command line; None for ``sys.argv``.

    Raises:
        SystemExit: 2, if an option or the config is wrong; 130 after Ctrl-C.
    """
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a config as train_net.py takes it"
    )
    parser.add_argument("--processes", type=int, default=1, help="that compute at the same time")
    add_import_option(parser)
    add_traceback_option(parser)
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="values that override the config's"
    )
    args = parser.parse_args(arguments)
    if args.processes < 1:
        parser.error("set --processes to 1 or more")
    begun = time.perf_counter()
    try:
        with exit_on_user_error(args.traceback):
            entries, computed = fill_cache(
                args.config_file, args.opts, args.processes, args.modules
            )
    except KeyboardInterrupt:
        print("Interrupted: what is filled stays, and the same command continues.", flush=True)
        raise SystemExit(130) from None
    seconds = time.perf_counter() - begun
    print(f"{entries} entries, {computed} of them computed in {seconds:.0f} s", flush=True)
