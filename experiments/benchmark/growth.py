#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Measure how a distilled step's cost grows with image size, batch, boxes, channels and processes.

    python -m experiments.benchmark.growth --output docs/benchmark/growth.json

It uses the shapes' Faster R-CNN with random weights and one thread of a CPU. Points that the file
already has are kept.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from d2kd.benchmark.memory import measure_peak
from d2kd.benchmark.networks import build_networks, read_config
from d2kd.benchmark.options import load_batches, parse_args
from d2kd.benchmark.tasks import lower_bound_and_step
from d2kd.utils.malloc import keep_freed_memory
from d2kd.utils.timing import describe_machine, interleave
from experiments.benchmark.processes import measure_processes
from experiments.plots import loglog_chart
from experiments.training_runs import ROOT

_TEACHER = ROOT / "configs/shapes/teacher/faster_rcnn_R_50_three_eighths_3000.yaml"


class Sweep(NamedTuple):
    """One quantity: its name, its values, and the methods that it is varied for."""

    name: str
    values: tuple[int, ...]
    methods: tuple[str, ...]


# Each process has its own two images of 320 pixels.
PROCESSES = Sweep("processes", (1, 2, 4), ("TAR",))
SWEEPS = (
    Sweep("longer side in pixels", (320, 480, 640, 960, 1333), ("TAR", "FRS", "SSIM")),
    Sweep("images in a batch", (1, 2, 4, 8), ("TAR", "SSIM")),
    Sweep("boxes in an image", (1, 10, 100, 300), ("TAR",)),
    Sweep("FPN channels", (64, 128, 256), ("TAR", "SSIM")),
    PROCESSES,
)


def arguments(sweep: Sweep, value: int, method: str, folder: Path) -> list[str]:
    """The benchmark's command line for one point; ``folder`` gets the configs that it needs."""
    flags = {"--size": [320, 320], "--batch": [2], "--boxes": [4]}
    keys: list[str] = []
    if sweep.name == "longer side in pixels":
        # One image of 3 : 5, as COCO's 800 x 1333.
        flags.update({"--size": [round(value * 0.6), value], "--batch": [1]})
    elif sweep.name == "images in a batch":
        flags["--batch"] = [value]
    elif sweep.name == "boxes in an image":
        flags["--boxes"] = [value]
    else:
        teacher = folder / f"teacher_{value}.yaml"
        model = {"FPN": {"OUT_CHANNELS": value}}
        teacher.write_text(yaml.safe_dump({"_BASE_": str(_TEACHER), "MODEL": model}))
        keys = ["MODEL.FPN.OUT_CHANNELS", str(value), "DISTILL.TEACHER.CONFIG_FILE", str(teacher)]
    given = [str(x) for name, values in flags.items() for x in (name, *values)]
    fixed = ["--random-weights", "--threads", "1"]
    return ["--config-file", config_of(method), *fixed, *given, "MODEL.DEVICE", "cpu", *keys]


def config_of(method: str) -> str:
    return f"configs/shapes/{method}/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml"


def time_point(sweep: Sweep, value: int, method: str, steps: int) -> dict:
    """Median seconds of the baseline step, the needed teacher and the distilled step."""
    with tempfile.TemporaryDirectory() as folder:
        args = parse_args("", arguments(sweep, value, method, Path(folder)))
        cfg = read_config(args.config_file, args.opts)
        pair = build_networks(cfg, args.random_weights)
    times = interleave(lower_bound_and_step(pair, load_batches(cfg, args)), steps, warmup=2)
    found = {name: sample.median for name, sample in times.items()}
    bound = found["student_step_s"] + found["teacher_needed_s"]
    return {**found, "overhead_ratio": round(found["distilled_step_s"] / bound, 4)}


def memory_point(sweep: Sweep, value: int, method: str) -> dict:
    """Peak MiB of the distilled step."""
    with tempfile.TemporaryDirectory() as folder:
        args = parse_args("", arguments(sweep, value, method, Path(folder)))
        return {"peak_memory_mib": measure_peak("distilled", args, frozenset())}


def draw(points: list[dict], path: Path) -> None:
    """Plot one panel for each sweep: seconds of baseline, teacher and distilled step."""
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for point in points:
        side = "side" in point["sweep"]
        value = 0.6 * point["value"] ** 2 / 1e6 if side else point["value"]
        panel = panels.setdefault("megapixels" if side else point["sweep"], {})
        lines = [(f"{point['method']} distilled", "distilled_step_s")]
        if point["method"] == "TAR":
            lines += [("baseline", "student_step_s"), ("teacher, needed", "teacher_needed_s")]
        for label, key in lines:
            x, y = panel.get(label, (np.array([]), np.array([])))
            panel[label] = np.append(x, value), np.append(y, point[key])
    loglog_chart(panels, path)


def all_points() -> list[tuple[Sweep, int, str]]:
    """Every point to measure: a sweep, its value, a method."""
    return [
        (sweep, x, method) for sweep in SWEEPS for method in sweep.methods for x in sweep.values
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", required=True, type=Path, help="JSON file; gets a plot beside it"
    )
    parser.add_argument("--steps", type=int, default=20, help="timed rounds of each point")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    points = json.loads(args.output.read_text())["points"] if args.output.is_file() else []
    found = {(point["sweep"], point["value"], point["method"]): point for point in points}

    def keep(key: tuple[str, int, str], values: dict) -> None:
        """Write after every point, so that an interrupted run continues from here."""
        found[key] = {**dict(zip(("sweep", "value", "method"), key)), **values}
        print(found[key], flush=True)
        ordered = [found[k] for k in keys if k in found]
        result = {**describe_machine("cpu"), "threads": 1, "steps": args.steps, "points": ordered}
        args.output.write_text(json.dumps(result, indent=1) + "\n")

    keys = [(sweep.name, value, method) for sweep, value, method in all_points()]
    keep_freed_memory("cpu")
    for (sweep, value, method), key in zip(all_points(), keys):
        known = found.get(key, {})
        if "overhead_ratio" in known:
            continue
        if sweep is PROCESSES:
            keep(key, measure_processes(config_of(method), value, args.steps))
        else:
            keep(key, {**known, **time_point(sweep, value, method, args.steps)})
    for (sweep, value, method), key in zip(all_points(), keys):
        if "peak_memory_mib" not in found[key]:
            keep(key, {**found[key], **memory_point(sweep, value, method)})
    draw([found[key] for key in keys], args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
