# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Peak memory of a few steps, each kind of step in its own process.

The result is the process's peak during the steps minus its memory before the networks were built.
It is resident memory on a CPU, and what PyTorch allocated on a GPU.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes

from ..modeling.paired_forward.box_coders import DeltaBoxCoder
from ..modeling.paired_forward.rcnn import Regions
from ..utils.malloc import keep_freed_memory
from .networks import build_any_teacher, build_networks, build_stock, read_config
from .options import as_arguments, load_batches, parse_args
from .tasks import Task, teacher_needed, train_step

__all__ = ["measure_peak", "measure_peaks", "resident_mib"]

PARTS = ("student", "teacher", "distilled")
# The optimizer's state is allocated in the first step, so the second one is a whole one.
STEPS = 3


def resident_mib(field: str) -> float:
    """MiB of VmRSS (current) or VmHWM (peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith(field + ":"))


def _in_use(device: str) -> float:
    cuda = device.startswith("cuda")
    return torch.cuda.memory_allocated() / 2**20 if cuda else resident_mib("VmRSS")


def _peak(device: str) -> float:
    """Peak MiB since ``_reset_peak``."""
    cuda = device.startswith("cuda")
    return torch.cuda.max_memory_allocated() / 2**20 if cuda else resident_mib("VmHWM")


def _reset_peak(device: str) -> None:
    """Start a new peak: the extra memory for loading weights is free again when training starts."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def measure_peaks(args: argparse.Namespace, requires: frozenset[str]) -> dict:
    """Measure each part's peak; the ratio is distilled over the sum of student and teacher.

    Args:
        args: the benchmark's.
        requires: the teacher's outputs that the losses need.
    """
    peaks = {part: measure_peak(part, args, requires) for part in PARTS}
    ratio = peaks["distilled"] / (peaks["student"] + peaks["teacher"])
    return {"peak_memory_ratio": round(ratio, 4), "peak_memory_mib": peaks}


def measure_peak(part: str, args: argparse.Namespace, requires: frozenset[str]) -> float:
    """Measure the peak MiB of one of PARTS; ``requires`` matters for the teacher only."""
    named = ",".join([part, *sorted(requires)])
    command = [sys.executable, "-m", "d2kd.benchmark.memory", named, *as_arguments(args)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of the {part} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _build_task(
    part: str, requires: frozenset[str], cfg: CfgNode, batches: list[list[dict]], random: bool
) -> Task:
    if part == "student":
        return train_step(cfg, build_stock(cfg), batches)
    if part == "distilled":
        pair = build_networks(cfg, random, separate_baseline=False)
        return train_step(cfg, pair.distiller(list(pair.losses)), batches)
    teacher = build_any_teacher(cfg, random)[0]
    # About as many regions as a student's sampler takes as positive at most.
    regions = [_regions(batch, 32, teacher.model.device) for batch in batches]
    return teacher_needed(cfg, teacher, requires, batches, regions)


def _regions(batch: list[dict], rows: int, device: torch.device) -> Regions:
    """The ground truth of each image, repeated until there are so many boxes."""
    boxes, labels = [], []
    for truth in (x["instances"] for x in batch):
        times = -(-rows // max(len(truth), 1))
        boxes.append(Boxes(truth.gt_boxes.tensor.repeat(times, 1)[:rows]).to(device))
        labels.append(truth.gt_classes.repeat(times)[:rows].to(device))
    sizes = [tuple(x["image"].shape[-2:]) for x in batch]
    coder = DeltaBoxCoder(Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)))
    return Regions(boxes, torch.cat(labels), sizes, coder)


def main() -> None:
    """Measure one part of a step in this process and print the peak as JSON."""
    (part, *requires), args = sys.argv[1].split(","), parse_args("", sys.argv[2:])
    cfg = read_config(args.config_file, args.opts, args.modules)
    keep_freed_memory(cfg.MODEL.DEVICE)
    batches = load_batches(cfg, args)
    before = _in_use(cfg.MODEL.DEVICE)
    task = _build_task(part, frozenset(requires), cfg, batches, args.random_weights)
    _reset_peak(cfg.MODEL.DEVICE)
    for turn in range(STEPS):
        task(turn)
    print(json.dumps(round(_peak(cfg.MODEL.DEVICE) - before, 1)))


if __name__ == "__main__":
    main()
