#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Say how much of a training's time goes into waiting for data.

    python -m experiments.benchmark.data --json docs/benchmark/data.json

Short trainings by train_net.py, of which Detectron2's own ``data_time`` and ``time`` are read: the
plain student, whose steps are the shortest, and one under a teacher. Trainings that the file holds
already are kept.
"""

import argparse
import json
import statistics
import tempfile
import warnings
from pathlib import Path

# torch's, of what Detectron2 calls: nobody can act on them here.
warnings.simplefilter("ignore", FutureWarning)

from d2kd.utils.timing import describe_machine
from experiments.training_runs import Run, execute

# Set -> a config of it.
CONFIGS = {
    "shapes": "configs/shapes/SSIM/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml",
    "BCCD": "configs/bccd/TAR/faster_rcnn_R_50_eighth_from_R_50_half_600.yaml",
}


def data_share(path: Path) -> dict[str, float]:
    """Medians of what a ``metrics.json`` says of each iteration, and their ratio.

    Detectron2 writes medians over 20 iterations; those of the first 20, in which workers start,
    count only when there are no others.

    Raises:
        ValueError: no iteration was timed.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "time" in row and "data_time" in row]
    if not rows:
        raise ValueError(f"{path} times no iteration: Detectron2 leaves the first three out")
    seconds, waiting = (
        statistics.median(row[key] for row in rows[1:] or rows) for key in ("time", "data_time")
    )
    return {"seconds": seconds, "waiting_s": waiting, "share": round(waiting / seconds, 4)}


def measure(config: str, distilled: bool, workers: int, iterations: int) -> dict[str, float]:
    """One training without evaluation, on one thread and so many workers."""
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
    parser.add_argument("--json", required=True, type=Path, help="file for the results")
    parser.add_argument("--sets", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--iterations", type=int, default=80)
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = json.loads(args.json.read_text())["rows"] if args.json.is_file() else []
    known = {(row["set"], row["distilled"], row["workers"]) for row in rows}
    kinds = [(s, d, w) for s in args.sets for w in args.workers for d in (False, True)]
    for name, distilled, workers in kinds:
        if (name, distilled, workers) in known:
            continue
        found = measure(CONFIGS[name], distilled, workers, args.iterations)
        rows.append({"set": name, "distilled": distilled, "workers": workers, **found})
        print(rows[-1], flush=True)
        result = {**describe_machine("cpu"), "threads": 1, "iterations": args.iterations}
        args.json.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
