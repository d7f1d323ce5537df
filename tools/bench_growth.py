#!/usr/bin/env python
"""Say how the cost of a distilled step grows with image, batch, boxes, channels and processes.

    python tools/bench_growth.py --json docs/benchmark/growth.json

On the shapes' Faster R-CNN with random weights, on a CPU's single thread; each point is a run of
tools/benchmark.py. Points that the file holds already are kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
import yaml
from bench_processes import measure_processes
from bench_time import describe_machine
from pictures import loglog_chart

ROOT = Path(__file__).resolve().parents[1]
_TEACHER = ROOT / "configs/shapes/faster_rcnn_teacher.yaml"


class Sweep(NamedTuple):
    """One quantity: its name, its unit, its values, and the methods it is tried on."""

    name: str
    values: Tuple[int, ...]
    methods: Tuple[str, ...]


# Each with two 320 px images of its own.
PROCESSES = Sweep("processes", (1, 2, 4), ("TAR",))
SWEEPS = (
    Sweep("longer side in pixels", (320, 480, 640, 960, 1333), ("TAR", "FRS", "SSIM")),
    Sweep("images in a batch", (1, 2, 4, 8), ("TAR", "SSIM")),
    Sweep("boxes in an image", (1, 10, 100, 300), ("TAR",)),
    Sweep("FPN channels", (64, 128, 256), ("TAR", "SSIM")),
    PROCESSES,
)


def options(sweep: str, value: int, folder: Path) -> Tuple[List[str], List[str]]:
    """The benchmark's options and the config's for one point."""
    flags = {"--size": [320, 320], "--batch": [2], "--boxes": [4]}
    keys: List[str] = []
    if sweep == "longer side in pixels":
        # 3 : 5 as COCO's 800 x 1333, one image.
        flags.update({"--size": [round(value * 0.6), value], "--batch": [1]})
    elif sweep == "images in a batch":
        flags["--batch"] = [value]
    elif sweep == "boxes in an image":
        flags["--boxes"] = [value]
    else:
        teacher = folder / f"teacher_{value}.yaml"
        model = {"FPN": {"OUT_CHANNELS": value}}
        teacher.write_text(yaml.safe_dump({"_BASE_": str(_TEACHER), "MODEL": model}))
        keys = ["MODEL.FPN.OUT_CHANNELS", str(value), "DISTILL.TEACHER.CONFIG_FILE", str(teacher)]
    return [str(x) for name, given in flags.items() for x in (name, *given)], keys


def config_of(method: str) -> str:
    return f"configs/shapes/{method}/faster_rcnn_thin_from_wide_800.yaml"


def measure(sweep: Sweep, value: int, method: str, steps: int) -> dict:
    """One run of the benchmark, of which a few numbers are kept."""
    with tempfile.TemporaryDirectory() as folder:
        flags, keys = options(sweep.name, value, Path(folder))
        out = Path(folder) / "out.json"
        command = [sys.executable, "tools/benchmark.py", "--config-file", config_of(method)]
        command += ["--json", str(out), "--random-weights", "--steps", str(steps)]
        command += ["--threads", "1", "--no-alone", *flags, *keys]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        found = json.loads(out.read_text())
    kept = ("student_step_s", "teacher_needed_s", "distilled_step_s", "overhead_ratio")
    point = {"sweep": sweep.name, "value": value, "method": method}
    return {
        **point,
        **{key: found[key] for key in kept},
        "peak_memory_mib": found["peak_memory_mib"]["distilled"],
    }


def draw(points: List[dict], path: Path) -> None:
    """One panel for each sweep: seconds of plain student, teacher and distilled step."""
    panels: Dict[str, Dict[str, Tuple[np.ndarray, np.ndarray]]] = {}
    for point in points:
        panel = panels.setdefault(point["sweep"], {})
        lines = [(f"{point['method']} distilled", "distilled_step_s")]
        if point["method"] == "TAR":
            lines += [("plain student", "student_step_s"), ("teacher, needed", "teacher_needed_s")]
        for label, key in lines:
            x, y = panel.get(label, (np.array([]), np.array([])))
            panel[label] = np.append(x, point["value"]), np.append(y, point[key])
    loglog_chart(panels, path)


def wanted() -> List[Tuple[Sweep, int, str]]:
    """Every point: a sweep, its value, a method."""
    return [
        (sweep, x, method) for sweep in SWEEPS for method in sweep.methods for x in sweep.values
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, type=Path, help="the plot is written beside it")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each point")
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    points = json.loads(args.json.read_text())["points"] if args.json.is_file() else []
    known = {(point["sweep"], point["value"], point["method"]) for point in points}
    for sweep, value, method in wanted():
        if (sweep.name, value, method) in known:
            continue
        if sweep is PROCESSES:
            points.append(measure_processes(config_of(method), value, method, args.steps))
        else:
            points.append(measure(sweep, value, method, args.steps))
        print(points[-1], flush=True)
        # After every point: a run that is cut off goes on from here.
        found = {**describe_machine("cpu"), "threads": 1, "steps": args.steps, "points": points}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    draw(points, args.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
