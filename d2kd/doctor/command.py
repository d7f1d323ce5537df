# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Check a config, its data and its two detectors before a training is started."""

import json
import logging
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..utils.command_line import add_import_option, exit_on_user_error
from ..utils.common_arguments import add_common_arguments
from .finding import Finding, Status, render
from .run import diagnose

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every check and print one row for each finding.

    Args:
        arguments: of the command line; None for ``sys.argv``.

    Returns:
        The exit status: 1 if a finding is an error, else 0.

    Raises:
        SystemExit: 2, if an option is wrong or the checks themselves cannot run.
    """
    args = _parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # fvcore lists what a checkpoint lacks; the finding "start" says the same.
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)
    with exit_on_user_error(args.traceback):
        findings = diagnose(
            args.config_file,
            args.opts,
            batches=args.batches,
            images=args.images,
            modules=args.modules,
            target=args.target_ratio,
            say=lambda finding: print(render(finding), flush=True),
        )
    counts = Counter(finding.status for finding in findings)
    print(", ".join(f"{counts[status]} {status.value}" for status in Status))
    if args.output:
        _write(findings, args.output)
    return 1 if counts[Status.ERROR] else 0


def _parse_args(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, epilog="Exit status 1: a check found an error.")
    add_common_arguments(parser, output_help="JSON file for the findings; none by default")
    add_import_option(parser)
    parser.add_argument(
        "--batches",
        type=int,
        help="number of training batches to try; by default 4, on a CPU fewer if they take long",
    )
    parser.add_argument(
        "--images",
        type=int,
        help="number of images of a batch to use, 0 for all; by default all, on a CPU as many as "
        "fit into about a minute",
    )
    parser.add_argument(
        "--target-ratio",
        type=float,
        default=0.5,
        help="ratio of each distillation loss to the detection losses for which a weight is "
        "suggested",
    )
    args = parser.parse_args(arguments)
    counts = (args.batches is None or args.batches > 0, args.images is None or args.images >= 0)
    if not all(counts) or args.target_ratio <= 0:
        parser.error("set --batches and --target-ratio above 0, and --images to 0 or above")
    return args


def _write(findings: list[Finding], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**finding._asdict(), "status": finding.status.value} for finding in findings]
    path.write_text(json.dumps(rows, indent=1) + "\n")
