# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Trainings as subprocesses of train_net.py: start one, print its progress, read its results."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from d2kd import add_d2kd_config
from d2kd.utils.device import device_or_cpu
from d2kd.utils.files import atomic_write, sha256
from d2kd.utils.progress import loss_terms

__all__ = [
    "ROOT",
    "Run",
    "count_params",
    "device",
    "execute",
    "file_sha256",
    "metrics",
    "progress",
    "cached_result",
    "run_all",
    "train",
]

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

# Paths in configs (bases, teachers, output folders) are relative to the repository's root.
ROOT = Path(__file__).resolve().parents[1]

_SCALAR = re.compile(r"(\S+): (\S+)")


@dataclass(frozen=True)
class Run:
    """One training: ``name`` begins its progress lines, ``opts`` override ``config``."""

    name: str
    config: str
    output: Path
    opts: tuple[str, ...] = ()


def device() -> str:
    """MODEL.DEVICE for this machine: the GPU if there is one."""
    return device_or_cpu("cuda")[0]


def file_sha256(address: str) -> str:
    """The SHA-256 of a file in hexadecimal digits; "" if it is absent.

    Args:
        address: a path from the root, or "d2kd://...", the address of a shipped file.
    """
    path = address if "://" in address else str(ROOT / address)
    return sha256(PathManager.get_local_path(path)) if PathManager.isfile(path) else ""


def cached_result(folder: Path, settings: dict, compute: Callable[[], dict]) -> dict:
    """Return the stored results if they have these settings; else compute and store them.

    A folder with other settings, or with an unfinished computation, is emptied first.

    Args:
        folder: for ``run.json``, which is written last, and the files that ``compute`` writes.
        settings: everything that the results depend on; JSON.
        compute: returns the results; JSON.
    """
    record = folder / "run.json"
    settings = json.loads(json.dumps(settings))
    if record.is_file():
        found = json.loads(record.read_text())
        if found["settings"] == settings:
            print(f"{folder}: already there", flush=True)
            return found["results"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    results = compute()
    with atomic_write(str(record), "w") as file:
        file.write(json.dumps({"settings": settings, "results": results}, indent=2) + "\n")
    return results


def train(run: Run, threads: int | None = None, every: int = 20) -> dict[str, float]:
    """Train and evaluate a run, unless its results with the same settings are there already.

    Args:
        run: its settings are the merged yaml, the options and the teacher's file.
        threads: CPU threads of the process; None lets PyTorch choose.
        every: iterations between two printed lines; a multiple of 20, Detectron2's period.

    Returns:
        dict: AP, AP50, AP75 (if DATASETS.TEST is not empty), params, seconds_per_iter.
    """
    settings = {
        "config": CfgNode.load_yaml_with_base(str(ROOT / run.config)),
        "opts": run.opts,
        "teacher": _teacher_sha256(run),
        "threads": threads,
    }
    return cached_result(run.output, settings, lambda: execute(run, threads, every))


def run_all(
    calls: dict[Key, Callable[[], Result]], jobs: int, describe: Callable[[Key, Result], str]
) -> dict[Key, Result]:
    """Make all calls, ``jobs`` at a time and in their order; one that fails stops no other.

    Args:
        calls: what is to be done, by any key.
        describe: key and result to a line, which is printed.

    Returns:
        The results by key.

    Raises:
        SystemExit: a call failed; the others were finished.
    """
    results, failures = {}, 0
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(call): key for key, call in calls.items()}
        for done, job in enumerate(as_completed(running), 1):
            if job.exception() is not None:
                failures += 1
                print(job.exception(), flush=True)
                continue
            key = running[job]
            results[key] = job.result()
            print(f"{done}/{len(running)} {describe(key, results[key])}", flush=True)
    if failures:
        raise SystemExit(
            f"{failures} of {len(calls)} trainings failed; run this again to retry them"
        )
    return results


def _teacher_sha256(run: Run) -> str:
    config = CfgNode.load_yaml_with_base(str(ROOT / run.config))
    weights = config.get("DISTILL", {}).get("TEACHER", {}).get("WEIGHTS", "")
    opts = dict(zip(run.opts[::2], run.opts[1::2]))
    return file_sha256(opts.get("DISTILL.TEACHER.WEIGHTS", weights))


def execute(run: Run, threads: int | None = None, every: int = 20) -> dict[str, float]:
    """Train and evaluate a run, whatever its output folder already holds; see ``train``.

    Raises:
        RuntimeError: the training failed; the message has the end of its output.
    """
    run.output.mkdir(parents=True, exist_ok=True)
    opts = ["MODEL.DEVICE", device(), *run.opts, "OUTPUT_DIR", str(run.output)]
    command = [sys.executable, "train_net.py", "--config-file", run.config, *opts]
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        tail = _relay(process.stdout, run, every)
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {process.returncode}; {run.output}/console.txt has "
            f"the whole output, which ends with\n{tail}"
        )
    return {"params": _student_params(run.output), **metrics(run.output / "metrics.json")}


def _relay(output: Iterable[str], run: Run, every: int) -> str:
    """Write a training's output to ``console.txt``, print its progress, return its last lines."""
    tail = deque(maxlen=30)
    with open(run.output / "console.txt", "w") as console:
        for line in output:
            console.write(line)
            tail.append(line)
            short = progress(line, every)
            if short:
                print(f"{run.name:<12} {short}", flush=True)
    return "".join(tail)


def progress(line: str, every: int) -> str:
    """Shorten a line of Detectron2's log; "" if it is not about progress."""
    if "Start inference on" in line:
        return f"evaluating on {line.split('Start inference on')[1].split()[0]} batches"
    values = dict(_SCALAR.findall(line.split("]: ", 1)[-1]))
    if "iter" not in values or "total_loss" not in values:
        return ""
    if (int(values["iter"]) + 1) % every:
        return ""
    losses = loss_terms({name: float(values[name]) for name in values if "loss" in name})
    head = f"iter {int(values['iter']) + 1:>5}  eta {values.get('eta', '-')}"
    return f"{head}  loss {float(values['total_loss']):.3f} = {' + '.join(losses)}"


def metrics(path: Path) -> dict[str, float]:
    """Read seconds per iteration and, after an evaluation, AP, AP50 and AP75 of a ``metrics.json``.

    Detectron2 writes medians over the last 20 iterations. Those of the first 20 are warm-up and
    count only if there are no others.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    times = [row["time"] for row in rows if "time" in row]
    if not times:
        raise ValueError(f"{path} has no times: train for more than 3 iterations")
    results = {"seconds_per_iter": round(statistics.median(times[1:] or times), 4)}
    evaluated = [row for row in rows if "bbox/AP" in row]
    if evaluated:
        results.update((name, evaluated[-1][f"bbox/{name}"]) for name in ("AP", "AP50", "AP75"))
    return results


def _student_params(folder: Path) -> int:
    cfg = get_cfg()
    add_d2kd_config(cfg)  # has the keys of FCOS and GFL
    cfg.merge_from_file(str(folder / "student.yaml"))
    return count_params(cfg)


def count_params(cfg: CfgNode) -> int:
    """Count the parameters of a config's detector."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    return sum(p.numel() for p in build_model(cfg).parameters())
