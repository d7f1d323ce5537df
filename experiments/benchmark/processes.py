# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The baseline step and the distilled step in several processes that average their gradients."""

import json
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from d2kd.benchmark.memory import resident_mib
from d2kd.benchmark.networks import build_networks, read_config, synthetic_batches
from d2kd.benchmark.tasks import Task, lower_bound_and_step
from d2kd.engine.distributed.process_group import Group, join_group, leave_group
from d2kd.engine.distributed.worker_processes import run_children
from d2kd.utils.malloc import keep_freed_memory
from d2kd.utils.timing import interleave

__all__ = ["measure_processes"]


def _run(rank: int, group: Group, config: str, steps: int, out: Path) -> None:
    """Measure in one process, with one thread and its own two images of 320 pixels."""
    torch.set_num_threads(1)
    keep_freed_memory("cpu")
    join_group(group, rank)
    cfg = read_config(config, ["MODEL.DEVICE", "cpu"])
    before = resident_mib("VmRSS")
    pair = build_networks(cfg, random_weights=True)
    batches = synthetic_batches(cfg, (320, 320), images=2, boxes=4)
    tasks = lower_bound_and_step(pair, batches, DistributedDataParallel)
    # Every process runs the tasks in the same order, and waits for the others before each.
    times = interleave({k: _after_barrier(v) for k, v in tasks.items()}, steps)
    if rank == 0:
        found = {name: sample.median for name, sample in times.items()}
        found["peak_memory_mib"] = round(resident_mib("VmHWM") - before, 1)
        out.write_text(json.dumps(found))
    leave_group()


def _after_barrier(task: Task) -> Task:
    def run(turn: int) -> None:
        dist.barrier()
        task(turn)

    return run


def measure_processes(config: str, count: int, steps: int) -> dict[str, float]:
    """Median seconds of baseline, needed teacher and distilled step, and one process's memory.

    Args:
        config: path of a method's config.
        count: number of processes; each has its own batch.
        steps: number of timed rounds.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        out, group = Path(folder) / "out.json", Group("cpu", count, address=f"file://{folder}/meet")
        calls = {f"rank {i}": (i, group, config, steps, out) for i in range(count)}
        run_children(_run, calls)
        found = json.loads(out.read_text())
    bound = found["student_step_s"] + found["teacher_needed_s"]
    found["overhead_ratio"] = round(found["distilled_step_s"] / bound, 4)
    return found
