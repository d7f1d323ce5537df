# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The methods that the ablation compares: yaml files, and for variants, options over them."""

from typing import NamedTuple

from experiments.training_runs import ROOT

__all__ = ["BASELINE", "DETECTORS", "INHERIT", "SUITES", "Method", "Suite", "teacher_config"]

# Name in configs -> name in tables and charts, in the order of the rows.
DETECTORS = {"faster_rcnn": "Faster R-CNN", "retinanet": "RetinaNet", "fcos": "FCOS", "gfl": "GFL"}


class Method(NamedTuple):
    """A row of the table: ``opts`` override ``config``, a path from the root of the repository."""

    name: str
    config: str
    opts: tuple[str, ...] = ()


def teacher_config(suite: str, detector: str) -> str:
    """The config that trains the teacher of a detector on a suite's data, from the root."""
    (path,) = (ROOT / "configs" / suite / "teacher").glob(f"{detector}_R_50_*.yaml")
    return str(path.relative_to(ROOT))


class Suite(NamedTuple):
    """What is compared on one dataset.

    Attributes:
        methods: detector -> the baseline, then the methods that are compared with it.
        splits: "test" (reported) and "val" (to choose weights) -> the options that select it.
        iterations: training iterations of a student.
    """

    methods: dict[str, tuple[Method, ...]]
    splits: dict[str, tuple[str, ...]]
    iterations: int


def _shapes(detector: str, name: str, folder: str) -> Method:
    return Method(
        name, f"configs/shapes/{folder}/{detector}_R_50_eighth_from_R_50_three_eighths_800.yaml"
    )


BASELINE = "baseline"

_CONSTANT = ("DISTILL.SCHEDULE.NAME", "constant")


def _baseline(config: str) -> Method:
    return Method(BASELINE, config, ("DISTILL.ENABLED", "False"))


def _shapes_baseline(detector: str) -> Method:
    # Any distilled config: with ENABLED False it is the baseline, which may start from the teacher.
    return _baseline(_shapes(detector, "FRS", "FRS").config)


def _tar(config: str) -> tuple[Method, ...]:
    """Each of TAR's losses alone, all of them, and all with TAR's decay; only the last has it."""
    alone = (
        Method(f"TAR {name}", config, ("DISTILL.LOSSES", f"['{name}']", *_CONSTANT))
        for name in ("feature", "cls", "reg")
    )
    return (*alone, Method("TAR without decay", config, _CONSTANT), Method("TAR", config))


_SHAPES: dict[str, tuple[Method, ...]] = {
    "faster_rcnn": (
        _shapes_baseline("faster_rcnn"),
        *_tar("configs/shapes/TAR/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml"),
        _shapes("faster_rcnn", "FRS", "FRS"),
        _shapes("faster_rcnn", "SSIM", "SSIM"),
        _shapes("faster_rcnn", "hint", "hint"),
        _shapes("faster_rcnn", "PKD", "PKD"),
        _shapes("faster_rcnn", "CWD", "CWD"),
        _shapes("faster_rcnn", "SSIM + soft labels", "SSIM+labels"),
    ),
    "retinanet": (
        _shapes_baseline("retinanet"),
        *(_shapes("retinanet", name, name) for name in ("TAR", "FRS", "SSIM")),
    ),
    "fcos": (
        _shapes_baseline("fcos"),
        _shapes("fcos", "FRS", "FRS"),
    ),
    "gfl": (
        _shapes_baseline("gfl"),
        *(_shapes("gfl", name, name) for name in ("FRS", "LD")),
        _shapes("gfl", "FRS + LD", "FRS+LD"),
    ),
}

_BCCD_TAR = "configs/bccd/TAR/faster_rcnn_R_50_eighth_from_R_50_half_600.yaml"

SUITES = {
    "shapes": Suite(
        _SHAPES,
        {name: ("DATASETS.TEST", f"('d2kd_shapes_{name}',)") for name in ("test", "val")},
        iterations=800,
    ),
    "bccd": Suite(
        {"faster_rcnn": (_baseline(_BCCD_TAR), *_tar(_BCCD_TAR))},
        {
            "test": ("DATASETS.TEST", "('bccd_test',)"),
            "val": ("DATASETS.TRAIN", "('bccd_train',)", "DATASETS.TEST", "('bccd_val',)"),
        },
        iterations=600,
    ),
}

# What a student can take over from its teacher: everything but the narrower backbone.
INHERIT: dict[str, tuple[str, ...]] = {
    "faster_rcnn": ("backbone.fpn", "proposal_generator", "roi_heads"),
    "retinanet": ("backbone.fpn", "head"),
    "fcos": ("backbone.fpn", "head"),
    "gfl": ("backbone.fpn", "head"),
}
