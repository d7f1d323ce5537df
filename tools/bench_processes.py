"""A distilled step in several processes that average their gradients, beside the plain one."""

import os
import tempfile
from pathlib import Path
from typing import Dict, List, Sequence

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bench_memory import resident_mib
from bench_pair import build_pair, read_config, synthetic_batches
from bench_tasks import record, teacher_needed, train_step
from bench_time import interleave
from torch.nn.parallel import DistributedDataParallel

from d2kd.engine.allocator import keep_freed_memory

__all__ = ["measure_processes"]


def _run(rank: int, count: int, config: str, steps: int, address: str, out: str) -> None:
    """One process: two 320 px images of its own, one thread."""
    torch.set_num_threads(1)
    keep_freed_memory("cpu")
    dist.init_process_group("gloo", address, rank=rank, world_size=count)
    cfg = read_config(config, ["MODEL.DEVICE", "cpu"])
    pair = build_pair(cfg, random_weights=True)
    batches = synthetic_batches(cfg, (320, 320), images=2, boxes=4)
    recorded, names = record(pair, batches), list(pair.losses)
    regions = [now.regions for now in recorded]
    model, needed = pair.teacher.model, pair.requires(names)
    tasks = {
        "student": train_step(cfg, DistributedDataParallel(pair.stock), batches),
        "needed": teacher_needed(cfg, model, needed, batches, regions),
        "distilled": train_step(cfg, DistributedDataParallel(pair.distiller(names)), batches),
    }
    # Every process takes the tasks in the same order, and waits for the others before each.
    times = interleave({k: _after_barrier(v) for k, v in tasks.items()}, steps)
    if rank == 0:
        seconds = {name: sample.median for name, sample in times.items()}
        torch.save({**seconds, "peak": resident_mib("VmHWM")}, out)
    dist.destroy_process_group()


def _after_barrier(task):
    def run(turn: int) -> None:
        dist.barrier()
        task(turn)

    return run


def measure_processes(config: str, counts: Sequence[int], steps: int) -> List[Dict[str, object]]:
    """Points as those of the other sweeps, by the number of processes.

    Args:
        config: of a method.
        counts: of processes; each has its own batch.
        steps: that are timed.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    points = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            out, rendezvous = Path(folder) / "out.pth", f"file://{folder}/rendezvous"
            mp.spawn(_run, (count, config, steps, rendezvous, str(out)), nprocs=count)
            found = torch.load(out)
        floor = found["student"] + found["needed"]
        points.append(
            {
                "sweep": "processes",
                "value": count,
                "method": "TAR",
                "student_step_s": found["student"],
                "teacher_needed_s": found["needed"],
                "distilled_step_s": found["distilled"],
                "overhead_ratio": round(found["distilled"] / floor, 4),
                "peak_mib": round(found["peak"], 1),
            }
        )
        print(points[-1], flush=True)
    return points
