# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What ``experiments.curves`` trains: students of a data set, and the methods that teach them."""

from typing import NamedTuple

from experiments.suites import BASELINE, SUITES
from experiments.training_runs import ROOT

__all__ = ["CURVES", "CurveMethod", "CurveSuite"]


class CurveMethod(NamedTuple):
    """A curve: ``opts`` override ``config``, a path from the root of the repository.

    Attributes:
        paper: "TAR", "FRS", "SSIM", or "" for the baseline and for other methods.
    """

    name: str
    paper: str
    config: str
    opts: tuple[str, ...] = ()


class CurveSuite(NamedTuple):
    """One data set.

    Attributes:
        lengths: iterations of the schedules, each twice the one before.
        splits: "test" (reported) and "val" (to choose by) -> the options that select it.
        students: letter -> detector -> the methods, the baseline first.
    """

    lengths: tuple[int, ...]
    splits: dict[str, tuple[str, ...]]
    students: dict[str, dict[str, tuple[CurveMethod, ...]]]


# Folders below configs/<data set>; those that a data set lacks are left out.
_PAPERS = ("TAR", "FRS", "SSIM")
_FOLDERS = (*_PAPERS, "PKD", "CWD", "LD", "BCKD", "CrossKD", "CrossKD+PKD")
_SHARES = ("DISTILL.BALANCE", "gradient")


def _methods(
    root: str, student: str, teacher: str, detector: str, length: int
) -> tuple[CurveMethod, ...]:
    """The baseline, and each preset that is there with its weights and by gradient share."""
    methods = [CurveMethod(BASELINE, "", f"{root}/baseline/{detector}_{student}_{length}.yaml")]
    for folder in _FOLDERS:
        config = f"{root}/{folder}/{detector}_{student}_from_{teacher}_{length}.yaml"
        if (ROOT / config).is_file():
            paper = folder if folder in _PAPERS else ""
            methods.append(CurveMethod(folder, paper, config))
            methods.append(CurveMethod(f"{folder}, shares", paper, config, _SHARES))
    return tuple(methods)


def _students(
    root: str, pairs: dict[str, tuple[str, str, tuple[str, ...]]], length: int
) -> dict[str, dict[str, tuple[CurveMethod, ...]]]:
    """letter -> (student, teacher, detectors) to letter -> detector -> methods."""
    return {
        letter: {name: _methods(root, student, teacher, name, length) for name in detectors}
        for letter, (student, teacher, detectors) in pairs.items()
    }


_ALL = ("faster_rcnn", "retinanet", "fcos", "gfl")
_CARDS = {
    "test": ("DATASETS.TEST", "('cards_test',)"),
    "val": ("DATASETS.TRAIN", "('cards_train',)", "DATASETS.TEST", "('cards_val',)"),
}

CURVES = {
    "shapes": CurveSuite(
        (800, 1600, 3200, 6400),
        SUITES["shapes"].splits,
        _students("configs/shapes", {"A": ("R_50_eighth", "R_50_three_eighths", _ALL)}, 800),
    ),
    "bccd": CurveSuite(
        (600, 1200, 2400, 4800),
        SUITES["bccd"].splits,
        _students("configs/bccd", {"A": ("R_50_eighth", "R_50_half", _ALL)}, 600),
    ),
    "cards": CurveSuite(
        (600, 1200, 2400, 4800),
        _CARDS,
        _students(
            "configs/cards",
            {
                "A": ("R_50_eighth", "lite0", _ALL),
                "B": ("lite0_slim", "lite2", ("faster_rcnn",)),
            },
            2400,
        ),
    ),
}
