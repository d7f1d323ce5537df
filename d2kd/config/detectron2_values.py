# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Values of Detectron2's own keys that it would refuse late and without the key, or never."""

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode

from ..utils.numbers import is_integer, is_number
from ..utils.text import did_you_mean
from .defaults import get_value

__all__ = ["wrong_values"]

_CHOICES = {
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    # Others of Pillow's modes are possible, but no detector is trained on them.
    "INPUT.FORMAT": ("BGR", "RGB", "YUV-BT.601", "L", "HSV", "LAB", "YCbCr"),
}
_CROPS = ("relative", "relative_range", "absolute", "absolute_range")
_CLIPPING = ("value", "norm")
# Of a score or an overlap, which lie within 0 and 1.
_FRACTIONS = (
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.RPN.NMS_THRESH",
    "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.NMS_THRESH_TEST",
)


def wrong_values(cfg: CfgNode) -> Iterator[str]:
    """A line for each key that has a value which it cannot have."""
    for key, known in {**_CHOICES, "DATALOADER.SAMPLER_TRAIN": _samplers(cfg)}.items():
        yield from _unknown(key, get_value(cfg, key), known)
    for key in _FRACTIONS:
        value = get_value(cfg, key)
        if not is_number(value) or not 0 <= value <= 1:
            yield f"  {key} is {value!r}: set it to a number from 0 to 1"
    yield from _size_problems(cfg)
    yield from _solver_problems(cfg)
    yield from _pixel_problems(cfg)
    if cfg.INPUT.CROP.ENABLED:
        yield from _crop_problems(cfg)
    if cfg.TEST.DETECTIONS_PER_IMAGE == 0:
        yield "  TEST.DETECTIONS_PER_IMAGE is 0: set it to 1 or above; -1 is no limit"


def _samplers(cfg: CfgNode) -> Sequence[str]:
    """Those that the installed Detectron2 knows; some came with keys that release 0.6 has not."""
    names = ["TrainingSampler", "RepeatFactorTrainingSampler"]
    if "RANDOM_SUBSET_RATIO" in cfg.DATALOADER:
        names.append("RandomSubsetTrainingSampler")
    if "TRAIN_REPEAT_FACTOR" in cfg.DATASETS:
        names += ["WeightedTrainingSampler", "WeightedCategoryTrainingSampler"]
    return names


def _unknown(key: str, value: Any, known: Iterable[str]) -> Iterator[str]:
    if value not in known:
        yield f"  {key} is {value!r}: set it to one of {sorted(known)}.{did_you_mean(value, known)}"


def _size_problems(cfg: CfgNode) -> Iterator[str]:
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    sizes = sizes if isinstance(sizes, (list, tuple)) else (sizes,)
    if not sizes or not all(is_integer(size) and size >= 0 for size in sizes):
        yield f"  INPUT.MIN_SIZE_TRAIN is {sizes!r}: set it to lengths in pixels, as (640, 800)"
    elif cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        yield (
            f"  INPUT.MIN_SIZE_TRAIN is {sizes!r}: set it to the least and the greatest length, "
            "which INPUT.MIN_SIZE_TRAIN_SAMPLING 'range' lies between"
        )
    if cfg.INPUT.MIN_SIZE_TEST < 0:
        yield (
            f"  INPUT.MIN_SIZE_TEST is {cfg.INPUT.MIN_SIZE_TEST}: set it to a length in pixels, "
            "or to 0 for images as they are"
        )


def _solver_problems(cfg: CfgNode) -> Iterator[str]:
    steps = list(cfg.SOLVER.STEPS)
    if not all(is_integer(x) and x > 0 for x in steps) or steps != sorted(set(steps)):
        yield f"  SOLVER.STEPS is {steps!r}: set it to rising iterations, as (60000, 80000)"
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED:
        yield from _unknown("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip.CLIP_TYPE, _CLIPPING)
    images, processes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if processes < 0 or (processes > 0 and images % processes):
        yield (
            f"  SOLVER.REFERENCE_WORLD_SIZE is {processes}: set it to 0, or to a number of "
            f"processes that divides SOLVER.IMS_PER_BATCH, {images}"
        )


def _pixel_problems(cfg: CfgNode) -> Iterator[str]:
    mean, deviation = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    if not all(is_number(x) for x in mean):
        yield f"  MODEL.PIXEL_MEAN is {mean!r}: set it to a number for each channel"
    if len(mean) != len(deviation) or not all(is_number(x) and x > 0 for x in deviation):
        yield (
            f"  MODEL.PIXEL_STD is {deviation!r}: set it to numbers above 0, as many as "
            f"MODEL.PIXEL_MEAN has ({len(mean)})"
        )


def _crop_problems(cfg: CfgNode) -> Iterator[str]:
    """Detectron2 checks these in each data worker, and names no key."""
    polygons = cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"
    if polygons and importlib.util.find_spec("shapely") is None:
        yield (
            "  INPUT.CROP.ENABLED is True: cutting polygons needs the package shapely, which is "
            "not installed. Install it, or set INPUT.MASK_FORMAT to 'bitmask', or "
            "INPUT.CROP.ENABLED to False"
        )
    kind, size = cfg.INPUT.CROP.TYPE, list(cfg.INPUT.CROP.SIZE)
    yield from _unknown("INPUT.CROP.TYPE", kind, _CROPS)
    relative = kind.startswith("relative")
    fine = all(is_number(x) and x > 0 and (x <= 1 if relative else is_integer(x)) for x in size)
    if len(size) != 2 or not fine:
        meaning = "two fractions above 0, at most 1" if relative else "two lengths in pixels"
        yield (
            f"  INPUT.CROP.SIZE is {size!r}: set it to {meaning} (height, width), as "
            f"INPUT.CROP.TYPE {kind!r} means"
        )
