#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Check a set-up before spending GPU hours on it (docs/doctor.md shows what it says).

    python tools/doctor.py \\
        --config-file configs/shapes/TAR/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml [KEY VALUE ...]

Exits with 1 if anything is wrong.
"""

import argparse
import logging
import sys
import warnings
from collections import Counter

# torch's, of what Detectron2 calls: nobody can act on them here.
warnings.simplefilter("ignore", FutureWarning)

from d2kd.doctor import Status, diagnose, render  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, help="as given to train_net.py")
    parser.add_argument(
        "--batches",
        type=int,
        help="training batches to try (default: 4; on a CPU fewer where time is short)",
    )
    parser.add_argument(
        "--images",
        type=int,
        help="use only so many images of a batch, 0 for all (default: all; on a CPU as many as the "
        "minute has time for)",
    )
    parser.add_argument(
        "--target-ratio",
        type=float,
        default=0.5,
        help="of each distillation loss to the detection losses, for the suggested weights",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override the config")
    args = parser.parse_args()
    counts = (args.batches is None or args.batches > 0, args.images is None or args.images >= 0)
    if not all(counts) or args.target_ratio <= 0:
        parser.error("--batches and --target-ratio must be above 0, --images not below")
    return args


def main() -> int:
    args = parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # It lists what a checkpoint lacks, as the finding does.
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)
    findings = diagnose(
        args.config_file,
        args.opts,
        batches=args.batches,
        images=args.images,
        target=args.target_ratio,
        say=lambda finding: print(render(finding), flush=True),
    )
    counts = Counter(finding.status for finding in findings)
    print(", ".join(f"{counts[status]} {status.value}" for status in Status))
    return 1 if counts[Status.ERROR] else 0


if __name__ == "__main__":
    sys.exit(main())
