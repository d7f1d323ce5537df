#!/usr/bin/env python
"""Measure everything that BENCHMARK.md tells, and write its tables.

    pip install -e '.[benchmark]'
    export DETECTRON2_DATASETS=...      # with bccd/ in it
    python tools/bench_all.py

Results that lie in the folder are kept: what was cut off goes on from there, and a file that is
removed is measured again.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List, NamedTuple, Tuple

from bench_report import DETECTORS, METHODS, ROOT

SHAPES = "configs/shapes/{method}/{detector}_thin_from_wide_800.yaml"
# The shortest schedules of R50 under R101.
COCO = "configs/{method}/{detector}_R_50_from_R_101_FPN_{schedule}.yaml"
COCO_DETECTORS, COCO_METHODS = DETECTORS[:2], METHODS[:3]


class Job(NamedTuple):
    """One command and the file by which it is known to be done.

    Attributes:
        group: for --only.
        threads: of the CPU.
        command: of the tools; ``--json result`` is added.
        always: run it also where its result is there, which it then completes.
    """

    group: str
    result: str
    threads: int
    command: Tuple[str, ...]
    always: bool = False


def jobs() -> List[Job]:
    """All of them, in the order in which they are run."""
    found = []
    for detector in DETECTORS:
        for method in METHODS:
            config = SHAPES.format(method=method, detector=detector)
            if (ROOT / config).is_file():
                command = ("benchmark.py", "--config-file", config)
                result = f"shapes/{detector}_{method}.json"
                found.append(Job("shapes", result, 1, (*command, "--threads", "1")))
    for detector in COCO_DETECTORS:
        for method in COCO_METHODS:
            command = ("benchmark.py", "--config-file", _coco_config(detector, method))
            command += ("--random-weights", "--size", "320", "320", "--batch", "2", "--no-alone")
            result = f"coco/{detector}_{method}.json"
            found.append(Job("coco", result, 4, (*command, "--threads", "4")))
    found.append(Job("compare", "compare.json", 4, ("bench_compare.py", "--threads", "4")))
    found.append(Job("growth", "growth.json", 1, ("bench_growth.py", "--steps", "5"), always=True))
    found.append(Job("data", "data.json", 1, ("bench_data.py",), always=True))
    return found


def _coco_config(detector: str, method: str) -> str:
    names = [
        COCO.format(method=method, detector=detector, schedule=schedule)
        for schedule in ("1x", "2x")
    ]
    return next(name for name in names if (ROOT / name).is_file())


def run(job: Job, folder: Path, seconds: float) -> bool:
    """Whether the job's results are there, after so many seconds at most."""
    result = folder / job.result
    if result.is_file() and not job.always:
        return True
    if seconds <= 0:
        return False
    start = time.monotonic()
    print(f"{job.result} ...", flush=True)
    tool, *options = job.command
    command = [sys.executable, f"tools/{tool}", *options, "--json", str(result)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(job.threads))
    # A group of its own: what it started ends with it.
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"{job.result}: out of time", flush=True)
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print(f"{job.result}: {time.monotonic() - start:.0f} s", flush=True)
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "docs/benchmark", help="for results")
    groups = list(dict.fromkeys(job.group for job in jobs()))
    parser.add_argument("--only", nargs="+", choices=groups, default=groups)
    parser.add_argument("--minutes", type=float, default=60, help="stop after so many")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    missing = [
        job.result
        for job in jobs()
        if job.group in args.only and not run(job, args.folder, end - time.monotonic())
    ]
    subprocess.run(
        [sys.executable, "tools/bench_report.py", "--folder", str(args.folder)],
        cwd=ROOT,
        check=True,
    )
    if missing:
        raise SystemExit(f"not there yet, call this again: {', '.join(missing)}")


if __name__ == "__main__":
    main()
