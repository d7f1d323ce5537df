#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Measure how much of a training's time is spent waiting for data.

    python -m experiments.benchmark.data --output docs/benchmark/data.json

It runs short trainings with train_net.py, the baseline (whose steps are the shortest) and a
distilled one, and reads Detectron2's ``data_time`` and ``time``. Trainings that the file already
has are kept.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from d2kd.utils.timing import describe_machine
from experiments.training_runs import Run, execute

# Data set -> a config that trains on it.
CONFIGS = {
    "shapes": "configs/shapes/SSIM/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml",
    "BCCD": "configs/bccd/TAR/faster_rcnn_R_50_eighth_from_R_50_half_600.yaml",
}


def data_share(path: Path) -> dict[str, float]:
    """Median seconds of an iteration and of its waiting from a ``metrics.json``, and their ratio.

    Detectron2 writes medians over 20 iterations. Those of the first 20, in which workers start,
    count only if there are no others.

    Raises:
        ValueError: no iteration was timed.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "time" in row and "data_time" in row]
    if not rows:
        raise ValueError(f"{path} has no times: train for more than 3 iterations")
    seconds, waiting = (
        statistics.median(row[key] for row in rows[1:] or rows) for key in ("time", "data_time")
    )
    return {"seconds": seconds, "waiting_s": waiting, "share": round(waiting / seconds, 4)}


def measure(config: str, distilled: bool, workers: int, iterations: int) -> dict[str, float]:
    """Train once without evaluation, on one thread."""
    options = {
        "DISTILL.ENABLED": distilled,
        "DATALOADER.NUM_WORKERS": workers,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": "()",
        "DATASETS.TEST": "()",
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Run("data", config, Path(folder), tuple(str(x) for p in options.items() for x in p))
        execute(run, threads=1)
        return data_share(run.output / "metrics.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, help="JSON file for the results")
    parser.add_argument("--sets", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--iterations", type=int, default=80)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = json.loads(args.output.read_text())["rows"] if args.output.is_file() else []
    known = {(row["set"], row["distilled"], row["workers"]) for row in rows}
    kinds = [(s, d, w) for s in args.sets for w in args.workers for d in (False, True)]
    for name, distilled, workers in kinds:
        if (name, distilled, workers) in known:
            continue
        found = measure(CONFIGS[name], distilled, workers, args.iterations)
        rows.append({"set": name, "distilled": distilled, "workers": workers, **found})
        print(rows[-1], flush=True)
        result = {**describe_machine("cpu"), "threads": 1, "iterations": args.iterations}
        args.output.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
