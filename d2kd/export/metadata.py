# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a file says of itself, so that it can be used without its config."""

import json
from collections.abc import Sequence
from importlib.metadata import version

from detectron2.config import CfgNode

__all__ = ["describe"]

_INPUTS = (
    "images: (batch, 3, height, width), 0 to 255, each image in the upper left corner; "
    "image_sizes: (batch, 2), height and width of each image within"
)
_OUTPUTS = (
    "boxes: (batch, rows, 4), x0 y0 x1 y1 in pixels of the input; scores: (batch, rows), 0 in "
    "empty rows; classes: (batch, rows), index into classes; masks, if any: (batch, rows, side, "
    "side), probability within the box"
)


def describe(cfg: CfgNode, classes: Sequence[str], precision: str) -> dict[str, str]:
    """The metadata of a file; every value is a text, those of several values JSON.

    Args:
        cfg: the student's.
        classes: their names, by index; empty where they are not known.
        precision: of the weights.
    """
    return {
        "written_by": f"d2kd {version('d2kd')}",
        "detector": cfg.MODEL.META_ARCHITECTURE,
        "classes": json.dumps(list(classes)),
        "channels": cfg.INPUT.FORMAT,
        "min_size": str(cfg.INPUT.MIN_SIZE_TEST),
        "max_size": str(cfg.INPUT.MAX_SIZE_TEST),
        "precision": precision,
        "inputs": _INPUTS,
        "outputs": _OUTPUTS,
    }
