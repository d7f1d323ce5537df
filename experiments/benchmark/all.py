#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Measure everything that BENCHMARK.md reports, and write its tables.

    pip install -e '.[benchmark]'
    export DETECTRON2_DATASETS=...      # holds bccd/
    python -m experiments.benchmark.all

Results that are in the folder are kept, so an interrupted run continues. Remove a file to measure
it again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from experiments.benchmark.report import METHODS, ROOT
from experiments.suites import DETECTORS

SHAPES = "configs/shapes/{method}/{detector}_R_50_eighth_from_R_50_three_eighths_800.yaml"
# The shortest schedules of R50 under R101.
COCO = "configs/coco/{method}/{detector}_R_50_from_R_101_FPN_{schedule}.yaml"
COCO_DETECTORS, COCO_METHODS = tuple(DETECTORS)[:2], METHODS[:3]
# Keys of DISTILL.TEACHER that change a step's time; measured on the shapes' Faster R-CNN.
KEYS = {
    "defaults": (),
    "channels_first": ("DISTILL.TEACHER.LAYOUT", "channels_first"),
    "compile": ("DISTILL.TEACHER.COMPILE", "True"),
    "bfloat16": ("DISTILL.TEACHER.PRECISION", "bfloat16"),
}


class Job(NamedTuple):
    """One command and the file that it writes.

    Attributes:
        group: its name for --only.
        result: the JSON file, within the folder of results.
        threads: CPU threads that it uses.
        command: module and options for ``python -m``; ``--output result`` is added.
        once: False for modules that find out by themselves what their file still lacks.
    """

    group: str
    result: str
    threads: int
    command: tuple[str, ...]
    once: bool = True


def jobs() -> list[Job]:
    """All jobs in the order in which they run; the longest comes first."""
    found = [
        Job(
            "growth", "growth.json", 1, ("experiments.benchmark.growth", "--steps", "5"), once=False
        )
    ]
    for detector in DETECTORS:
        for method in METHODS:
            config = SHAPES.format(method=method, detector=detector)
            if (ROOT / config).is_file():
                command = ("d2kd.benchmark", "--config-file", config)
                result = f"shapes/{detector}_{method}.json"
                found.append(
                    Job("shapes", result, 1, (*command, "--threads", "1", "--keep-memory"))
                )
    for detector in COCO_DETECTORS:
        for method in COCO_METHODS:
            command = ("d2kd.benchmark", "--config-file", _coco_config(detector, method))
            command += ("--random-weights", "--size", "320", "320", "--batch", "2", "--no-alone")
            result = f"coco/{detector}_{method}.json"
            found.append(Job("coco", result, 4, (*command, "--threads", "4", "--keep-memory")))
    for method in ("FRS", "SSIM"):
        for name, opts in KEYS.items():
            config = SHAPES.format(method=method, detector="faster_rcnn")
            command = ("d2kd.benchmark", "--config-file", config, "--no-memory", "--no-alone")
            result = f"keys/faster_rcnn_{method}_{name}.json"
            found.append(Job("keys", result, 1, (*command, "--threads", "1", *opts)))
    found.append(
        Job("compare", "compare.json", 4, ("experiments.benchmark.compare", "--threads", "4"))
    )
    found.append(Job("data", "data.json", 1, ("experiments.benchmark.data",), once=False))
    return found


def _coco_config(detector: str, method: str) -> str:
    names = [
        COCO.format(method=method, detector=detector, schedule=schedule)
        for schedule in ("1x", "2x")
    ]
    return next(name for name in names if (ROOT / name).is_file())


def is_there(job: Job, folder: Path) -> bool:
    """Whether the job is done; a file with peak memory only is not enough."""
    path = folder / job.result
    found = json.loads(path.read_text()) if path.is_file() else {}
    return job.once and bool(found.keys() - {"peak_memory_ratio", "peak_memory_mib"})


def run(job: Job, folder: Path, end: float) -> bool:
    """Run a job unless it is done; returns whether its results are there.

    Args:
        folder: of the results.
        end: value of ``time.monotonic()`` at which the job is stopped.
    """
    if is_there(job, folder):
        return True
    if time.monotonic() >= end:
        return False
    start = time.monotonic()
    module, *options = job.command
    command = [sys.executable, "-m", module, *options, "--output", str(folder / job.result)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(job.threads))
    # Its own process group, so that the processes that it starts end with it.
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(timeout=end - start)
    except subprocess.TimeoutExpired:
        code = "out of time"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print(f"{job.result}: {code or 'done'}, {time.monotonic() - start:.0f} s", flush=True)
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "docs/benchmark", help="folder of the results"
    )
    groups = list(dict.fromkeys(job.group for job in jobs()))
    parser.add_argument("--only", nargs="+", choices=groups, default=groups)
    parser.add_argument("--minutes", type=float, default=60, help="stop after this many minutes")
    parser.add_argument("--jobs", type=int, default=1, help="number of one-thread jobs at a time")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    chosen = [job for job in jobs() if job.group in args.only]
    narrow = [job for job in chosen if job.threads == 1]
    wide = [job for job in chosen if job.threads > 1]
    with ThreadPoolExecutor(args.jobs) as pool:
        done = list(pool.map(lambda job: run(job, args.folder, end), narrow))
    done += [run(job, args.folder, end) for job in wide]
    command = [sys.executable, "-m", "experiments.benchmark.report", "--folder", str(args.folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    missing = [job.result for job, there in zip([*narrow, *wide], done) if not there]
    if missing:
        raise SystemExit(f"still missing, run this again: {', '.join(missing)}")


if __name__ == "__main__":
    main()
