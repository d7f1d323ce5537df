# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Times of several tasks taken in turns, so that a busy machine slows all of them alike."""

import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import detectron2
import torch
import torchvision

__all__ = ["Sample", "describe_machine", "interleave", "wait"]


@dataclass(frozen=True)
class Sample:
    """Seconds of each round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def iqr(self) -> float:
        """Interquartile range around the median."""
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return high - low


def wait() -> None:
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleave(
    tasks: dict[str, Callable[[int], object]], steps: int, warmup: int = 3
) -> dict[str, Sample]:
    """Run every task ``warmup + steps`` times, in a new random order each round.

    The GPU is waited for around a task, never inside. Random streams start anew before each, so
    that tasks of one round sample the same regions.

    Args:
        tasks: name -> called with the number of the round.
        steps: rounds that are timed; the medians are over these.
        warmup: rounds before them.
    """
    order, shuffle = list(tasks), random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    # A collection would fall into whichever task is under way.
    gc.collect()
    gc.disable()
    for turn in range(warmup + steps):
        shuffle(order)
        for name in order:
            torch.manual_seed(turn)
            wait()
            start = time.perf_counter()
            tasks[name](turn)
            wait()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
        gc.collect()
    gc.enable()
    return {name: Sample(tuple(values)) for name, values in seconds.items()}


def _processor() -> str:
    """The processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_machine(device: str) -> dict:
    """What times depend on besides the code: versions, device, threads."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return {
        "device": device,
        "device_name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "detectron2": detectron2.__version__,
            "d2kd": version("d2kd"),
        },
    }
