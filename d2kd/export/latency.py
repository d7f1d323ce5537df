# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How long one image takes."""

from collections.abc import Callable

import torch

from ..utils.timing import Sample, interleave

__all__ = ["measure_latency"]


def measure_latency(
    detectors: dict[str, Callable], images: list[dict], rounds: int
) -> dict[str, Sample]:
    """Time detectors in turns, one image at a time, from resized image to boxes.

    Args:
        detectors: name -> function from batched_inputs to Detectron2's outputs.
        images: from the mapper; each round takes the next.
        rounds: timed for each detector, after three that are not.
    """

    def task(detect: Callable) -> Callable[[int], object]:
        return lambda turn: detect([images[turn % len(images)]])

    with torch.no_grad():
        return interleave({name: task(x) for name, x in detectors.items()}, rounds)
