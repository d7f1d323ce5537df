#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Compare d2kd's SSIM with other libraries', and its Gaussian masks with a loop over boxes.

    pip install -e '.[benchmark]'
    python -m experiments.benchmark.compare --output docs/benchmark/compare.json

It times forward and backward on the FPN levels (256 channels) of one 800 x 1333 image, in turns.
"""

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from d2kd.losses import gaussian
from d2kd.losses.ssim.distance import ssim
from d2kd.structures import MaskInput
from d2kd.utils.malloc import keep_freed_memory
from d2kd.utils.timing import describe_machine, interleave

# Stride -> height and width of the level; the image is padded to a multiple of 32.
LEVELS = {stride: (-(-800 // stride), -(-1344 // stride)) for stride in (4, 8, 16, 32, 64)}

Loss = Callable[[Tensor, Tensor], Tensor]


def ssim_losses() -> dict[str, Loss]:
    """``(1 - SSIM) / 2`` with a Gaussian window of 11 cells, by d2kd and by the others."""
    import kornia
    import pytorch_msssim
    from torchmetrics.functional.image import structural_similarity_index_measure

    theirs: dict[str, Loss] = {
        "kornia": lambda x, y: kornia.metrics.ssim(x, y, 11).mean(),
        "torchmetrics": lambda x, y: structural_similarity_index_measure(x, y, data_range=1.0),
        "pytorch-msssim": lambda x, y: pytorch_msssim.ssim(x, y, data_range=1.0),
    }
    return {
        "d2kd": lambda x, y: ssim(x, y, scaling="none").mean(),
        "d2kd, scaling both maps to [0, 1] first": lambda x, y: ssim(x, y).mean(),
        **{n: lambda x, y, index=index: (1 - index(x, y)) / 2 for n, index in theirs.items()},
    }


def ssim_tasks(
    losses: dict[str, Loss], channels: int, device: str
) -> dict[str, Callable[[int], object]]:
    """Each library's SSIM on all levels: forward, and backward to the student's maps."""
    generator = torch.Generator().manual_seed(0)
    teacher = [torch.rand(1, channels, *size, generator=generator) for size in LEVELS.values()]
    noise = [torch.rand(x.shape, generator=generator) for x in teacher]
    student = [(0.6 * x + 0.4 * y).to(device).requires_grad_() for x, y in zip(teacher, noise)]
    teacher = [x.to(device) for x in teacher]

    def task(function: Loss) -> Callable[[int], object]:
        def run(turn: int) -> None:
            for x in student:
                x.grad = None
            sum(function(x, y) for x, y in zip(student, teacher)).backward()

        return run

    return {name: task(function) for name, function in losses.items()}


def loop_masks(inputs: MaskInput, sigma2: float = 2.0) -> Tensor:
    """The masks of ``gaussian`` computed box by box, as most code does it."""
    images, height, width = inputs.size
    mask = inputs.boxes.new_zeros(images, height, width)
    ys = torch.arange(height, device=mask.device) + 0.5
    xs = torch.arange(width, device=mask.device) + 0.5
    for box, image in zip(inputs.boxes / inputs.stride, inputs.image_index):
        x0, y0, x1, y1 = box.tolist()
        w, h = max(x1 - x0, 1) / 2, max(y1 - y0, 1) / 2
        dx, dy = xs - (x0 + x1) / 2, ys - (y0 + y1) / 2
        value = torch.exp(-((dy / h) ** 2) / sigma2)[:, None] * torch.exp(-((dx / w) ** 2) / sigma2)
        inside = ((dy >= -h) & (dy < h))[:, None] & (dx >= -w) & (dx < w)
        mask[image] = torch.maximum(mask[image], value * inside)
    return mask


def mask_inputs(boxes: int, device: str) -> list[MaskInput]:
    """The input of a mask on every level, for one image with this many boxes."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1333.0, 800.0, 1333.0, 800.0])
    sides = 0.02 + 0.3 * torch.rand(boxes, 2, generator=generator) ** 2
    low = torch.rand(boxes, 2, generator=generator) * (1 - sides)
    found = (torch.cat([low, low + sides], dim=1) * scale).to(device)
    index = torch.zeros(boxes, dtype=torch.int64, device=device)
    strides = tuple(LEVELS)
    return [MaskInput((1, *LEVELS[s]), s, strides, found, index, None) for s in strides]


def mask_tasks(counts: list[int], device: str) -> dict[str, Callable[[int], object]]:
    """d2kd's and the loop's masks of all levels, for one image with each of ``counts`` boxes."""
    tasks = {}
    for count in counts:
        inputs = mask_inputs(count, device)
        for ours, theirs in ((gaussian(x), loop_masks(x)) for x in inputs):
            torch.testing.assert_close(ours, theirs)
        tasks[f"d2kd, {count} boxes"] = lambda _, x=inputs: [gaussian(level) for level in x]
        tasks[f"loop, {count} boxes"] = lambda _, x=inputs: [loop_masks(level) for level in x]
    return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, help="JSON file for the results")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, help="CPU threads; by default PyTorch's choice")
    parser.add_argument("--channels", type=int, default=256)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keep_freed_memory(device)
    times = {
        "ssim": interleave(ssim_tasks(ssim_losses(), args.channels, device), args.steps),
        "masks": interleave(mask_tasks([1, 10, 100, 300], device), args.steps),
    }
    result = {"channels": args.channels, "steps": args.steps, **describe_machine(device)}
    for name in ("kornia", "torchmetrics", "pytorch-msssim"):
        result["versions"][name] = version(name)
    for group, samples in times.items():
        result[group] = {n: {"seconds": s.median, "iqr": s.iqr} for n, s in samples.items()}
        rows = [(n, f"{s.median:.5f}", f"{s.iqr:.5f}") for n, s in samples.items()]
        print(tabulate(rows, [group, "seconds", "IQR"], disable_numparse=True), "\n")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
