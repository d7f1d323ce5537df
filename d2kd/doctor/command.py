# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Check a config, its data and its detectors before training, or compare two runs after it."""

import json
import logging
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..utils.command_line import add_import_option, exit_on_user_error
from ..utils.common_arguments import add_common_arguments
from .after import compare_runs
from .after.advice import advise
from .after.page import write_page
from .after.summary import summarize
from .finding import Finding, Status, render
from .run import diagnose

__all__ = ["main"]

# What --after writes into the folder of the distilled run.
PAGE = "doctor_after.html"


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
    return _compare(args) if args.after else _check(args)


def _check(args: Namespace) -> int:
    """Before a training."""
    _log_warnings()
    with exit_on_user_error(args.traceback):
        findings = diagnose(
            args.config_file,
            args.opts,
            batches=args.batches,
            images=args.images,
            modules=args.modules,
            target=args.target_ratio,
            weights=args.weights,
            say=lambda finding: print(render(finding), flush=True),
        )
    counts = Counter(finding.status for finding in findings)
    print(", ".join(f"{counts[status]} {status.value}" for status in Status))
    if args.output:
        _write(findings, args.output)
    return 1 if counts[Status.ERROR] else 0


def _compare(args: Namespace) -> int:
    """After two trainings."""
    _log_warnings()
    with exit_on_user_error(args.traceback):
        report = compare_runs(
            args.after[0],
            args.after[1],
            args.opts,
            resamples=args.resamples,
            say=lambda text: print(f"{text} ...", flush=True),
        )
        advice = advise(report)
        page = args.output or Path(args.after[0]) / PAGE
        write_page(report, advice, page)
    print(f"\n{summarize(report, advice)}\n\nthe page with plots: {page}")
    return 0


def _log_warnings() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # fvcore lists what a checkpoint lacks; the finding "start" says the same.
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)


def _parse_args(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, epilog="Exit status 1: a check found an error.")
    output_help = (
        "JSON file for the findings, none by default; after a training, the HTML page, by default "
        f"{PAGE} in the folder of the distilled run"
    )
    add_common_arguments(parser, output_help=output_help, required=False)
    add_import_option(parser)
    parser.add_argument(
        "--after",
        nargs=2,
        metavar=("DISTILLED", "BASELINE"),
        help="instead of a config: OUTPUT_DIR of a distilled run and that of its baseline, to be "
        "compared",
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=1000,
        help="of the test images, for the intervals of --after",
    )
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
    parser.add_argument(
        "--weights",
        help="a checkpoint of a run of this config: measure losses and gradients there as well",
    )
    args = parser.parse_args(arguments)
    if (args.config_file is None) == (args.after is None):
        parser.error("give --config-file before a training, or --after when it is over")
    counts = (args.batches is None or args.batches > 0, args.images is None or args.images >= 0)
    if not all(counts) or args.target_ratio <= 0:
        parser.error("set --batches and --target-ratio above 0, and --images to 0 or above")
    return args


def _write(findings: list[Finding], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**finding._asdict(), "status": finding.status.value} for finding in findings]
    path.write_text(json.dumps(rows, indent=1) + "\n")
