# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Times several tasks in turns, so that a busy machine slows all of them alike."""

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
    """The seconds of one task in each round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the times."""
        return statistics.median(self.values)

    @property
    def iqr(self) -> float:
        """Interquartile range."""
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return high - low

    @property
    def p90(self) -> float:
        """What nine in ten of the times are below."""
        return statistics.quantiles(self.values, n=10, method="inclusive")[-1]


def wait() -> None:
    """Wait until the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleave(
    tasks: dict[str, Callable[[int], object]], steps: int, warmup: int = 3
) -> dict[str, Sample]:
    """Run every task ``warmup + steps`` times, each round in a new random order.

    It waits for the GPU before and after a task, never inside. Every task of a round starts with
    the same random seed, so that all sample the same regions.

    Args:
        tasks: name -> function of the round's number.
        steps: number of timed rounds.
        warmup: number of untimed rounds before them.

    Returns:
        dict: name -> the seconds of its timed rounds.
    """
    order, shuffle = list(tasks), random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    # A garbage collection would lengthen whichever task is running.
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
    """The processor's name, as far as the system knows it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_machine(device: str) -> dict:
    """What times depend on besides the code: device, threads, versions."""
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
