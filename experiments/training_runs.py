# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""One training as a subprocess of train_net.py: started, watched, and its results read back."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from d2kd import add_d2kd_config
from d2kd.utils.files import sha256

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
    "train",
]

# Configs name each other, the teacher's weights and output folders from here.
ROOT = Path(__file__).resolve().parents[1]

_SCALAR = re.compile(r"(\S+): (\S+)")


@dataclass(frozen=True)
class Run:
    """One training: ``name`` stands before its progress lines, ``opts`` override ``config``."""

    name: str
    config: str
    output: Path
    opts: tuple[str, ...] = ()


def device() -> str:
    """MODEL.DEVICE for this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def file_sha256(path: Path) -> str:
    """The sha256 of a file in hex, or "" if it is not there."""
    return sha256(path) if path.is_file() else ""


def cached_result(folder: Path, settings: dict, compute: Callable[[], dict]) -> dict:
    """Results that lie in ``folder`` if they were computed with these settings, or computed now.

    A folder whose settings differ, or that was not finished, is emptied first.

    Args:
        folder: keeps ``run.json``, written last, and whatever ``compute`` writes.
        settings: everything the results depend on; JSON.
        compute: gives the results; JSON.
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
    unfinished = record.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"settings": settings, "results": results}, indent=2) + "\n")
    unfinished.replace(record)
    return results


def train(run: Run, threads: int | None = None, every: int = 20) -> dict[str, float]:
    """Train and evaluate as ``run`` says, unless its results are there already.

    Args:
        run: its settings are the merged yaml, the options and the teacher's file.
        threads: of the process; None leaves the choice to PyTorch.
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


def _teacher_sha256(run: Run) -> str:
    config = CfgNode.load_yaml_with_base(str(ROOT / run.config))
    weights = config.get("DISTILL", {}).get("TEACHER", {}).get("WEIGHTS", "")
    opts = dict(zip(run.opts[::2], run.opts[1::2]))
    return file_sha256(ROOT / opts.get("DISTILL.TEACHER.WEIGHTS", weights))


def execute(run: Run, threads: int | None = None, every: int = 20) -> dict[str, float]:
    """As ``train``, in any case, and into an output folder as it is.

    Raises:
        RuntimeError: the training failed; carries the end of its output.
    """
    run.output.mkdir(parents=True, exist_ok=True)
    opts = [*run.opts, "MODEL.DEVICE", device(), "OUTPUT_DIR", str(run.output)]
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
            f"all of its output, which ends in\n{tail}"
        )
    return {"params": _student_params(run.output), **metrics(run.output / "metrics.json")}


def _relay(output: Iterable[str], run: Run, every: int) -> str:
    """Keep a training's output in ``console.txt`` and print its progress; returns its end."""
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
    """What a line of Detectron2's log says, in short; "" if it is not about progress."""
    if "Start inference on" in line:
        return f"evaluating on {line.split('Start inference on')[1].split()[0]} batches"
    values = dict(_SCALAR.findall(line.split("]: ", 1)[-1]))
    if "iter" not in values or "total_loss" not in values:
        return ""
    if (int(values["iter"]) + 1) % every:
        return ""
    losses = [
        f"{name.removeprefix('loss_')} {float(value):.3g}"
        for name, value in values.items()
        if name.startswith("loss_") and "/" not in name
    ]
    head = f"iter {int(values['iter']) + 1:>5}  eta {values.get('eta', '-')}"
    return f"{head}  loss {float(values['total_loss']):.3f} = {' + '.join(losses)}"


def metrics(path: Path) -> dict[str, float]:
    """Seconds per iteration and, if it was evaluated, AP, AP50, AP75 from a ``metrics.json``.

    Detectron2 writes medians over the last 20 iterations; those of the first 20 are warm-up and
    count only when there are no others.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    times = [row["time"] for row in rows if "time" in row]
    if not times:
        raise ValueError(f"{path} times no iteration: Detectron2 leaves the first three out")
    results = {"seconds_per_iter": round(statistics.median(times[1:] or times), 4)}
    evaluated = [row for row in rows if "bbox/AP" in row]
    if evaluated:
        results.update((name, evaluated[-1][f"bbox/{name}"]) for name in ("AP", "AP50", "AP75"))
    return results


def _student_params(folder: Path) -> int:
    cfg = get_cfg()
    add_d2kd_config(cfg)  # FCOS and GFL have keys of their own
    cfg.merge_from_file(str(folder / "student.yaml"))
    return count_params(cfg)


def count_params(cfg: CfgNode) -> int:
    """The number of parameters of the detector of a config."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    return sum(p.numel() for p in build_model(cfg).parameters())
