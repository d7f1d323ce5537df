# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What the demo trains on: the synthetic shapes, or one of two sets of photographs."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.demo.clones import BCCD, CARDS, arrange_bccd, arrange_cards

__all__ = ["DEMOS", "Clone", "Demo"]


class Clone(NamedTuple):
    """Where a data set comes from.

    Attributes:
        address: of the git repository.
        folder: of the clone, below the folder of data sets.
        arrange: (clone, new folder) -> None; copies the photographs and writes the splits.
    """

    address: str
    folder: str
    arrange: Callable[[Path, Path], None]


class Demo(NamedTuple):
    """A data set of the demo.

    Attributes:
        config: trains the distilled student, a path from the root of the repository.
        train_set, test_set: their names.
        iterations: of each student.
        clone: None if d2kd draws the images itself.
    """

    config: str
    train_set: str
    test_set: str
    iterations: int
    clone: Clone | None = None


DEMOS = {
    "shapes": Demo(
        "configs/shapes/SSIM/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml",
        "d2kd_shapes_train",
        "d2kd_shapes_test",
        800,
    ),
    "cards": Demo(
        "configs/cards/SSIM/faster_rcnn_R_50_eighth_from_lite0_2400.yaml",
        "cards_trainval",
        "cards_test",
        600,
        Clone(CARDS, "cards_clone", arrange_cards),
    ),
    "bccd": Demo(
        "configs/bccd/TAR/faster_rcnn_R_50_eighth_from_R_50_half_600.yaml",
        "bccd_trainval",
        "bccd_test",
        600,
        Clone(BCCD, "bccd_clone", arrange_bccd),
    ),
}
