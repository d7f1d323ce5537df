#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Write a checkpoint's model without the rest, in half precision: a teacher small enough to ship.

python -m experiments.shrink_checkpoint output/shapes/faster_rcnn_teacher/model_final.pth \\
    configs/shapes/teacher/faster_rcnn_R_50_three_eighths_3000_fp16.pth
"""

import argparse

import torch
from torch import Tensor

__all__ = ["shrink"]


def shrink(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating-point tensors to float16 and copy the others.

    Raises:
        ValueError: a value is outside float16's range.
    """
    small = {k: v.half() if v.is_floating_point() else v.clone() for k, v in state.items()}
    for name, value in small.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} has values outside float16's range")
    return small


def main(arguments: list[str] | None = None) -> None:
    """Write the weights of a checkpoint in half precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a checkpoint of Detectron2, e.g. model_final.pth")
    parser.add_argument("target", help="the file to write")
    args = parser.parse_args(arguments)
    # The checkpoint is the user's own; it also holds the optimizer and the trainer's state.
    checkpoint = torch.load(args.source, map_location="cpu", weights_only=False)
    torch.save({"model": shrink(checkpoint["model"])}, args.target)


if __name__ == "__main__":
    main()
