# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Where a dense student's positives lie, and the rows of any detector's maps there.

Shape shorthand in this file:
    N: images; A: anchors per location; H, W: size of a feature level
    D: values per anchor; K: foreground classes
    R: regions = the student's positives of all images together
"""

from typing import NamedTuple

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes
from torch import Tensor

from ...utils.errors import PairMismatchError

__all__ = ["LevelPositives", "find_positives", "gather", "rows_of_all_levels"]


class LevelPositives(NamedTuple):
    """Where the student's positives of one level lie, in any detector's map of that level.

    Attributes:
        name: of the level.
        size: (H, W).
        first: index of the level's first anchor among all levels' anchors.
        anchors_per_cell: A.
        image: (R of this level,) index of each positive's image.
        anchor: (R of this level,) index of its anchor among the level's.
    """

    name: str
    size: torch.Size
    first: int
    anchors_per_cell: int
    image: Tensor
    anchor: Tensor

    def of_map(self, x: Tensor) -> Tensor:
        """Gather this level's rows, of length D, from (N, A * D, H, W)."""
        if x.shape[-2:] != self.size:
            raise PairMismatchError(
                f"level {self.name!r} is {tuple(self.size)} (height, width) in the student and "
                f"{tuple(x.shape[-2:])} in the teacher: both must have the same strides and pad "
                "images to the same multiple"
            )
        per_cell = self.anchors_per_cell
        # Anchors are counted within a cell first, channels within an anchor first.
        rows = x.flatten(2).unflatten(1, (per_cell, -1))
        return rows[self.image, self.anchor % per_cell, :, self.anchor // per_cell]


def find_positives(
    student: DenseDetector, maps: list[Tensor], anchors: list[Boxes], labels: Tensor
) -> list[LevelPositives]:
    """From ``labels`` (N, anchors of all levels): 0..K-1, K for background, -1 for ignored."""
    positive = (labels >= 0) & (labels < student.num_classes)
    lengths = [len(a) for a in anchors]
    firsts = [sum(lengths[:i]) for i in range(len(lengths))]
    levels = zip(student.head_in_features, maps, lengths, firsts, positive.split(lengths, dim=1))
    return [
        LevelPositives(
            name, x.shape[-2:], first, length // x[0, 0].numel(), *found.nonzero().unbind(1)
        )
        for name, x, length, first, found in levels
    ]


def gather(positives: list[LevelPositives], maps: dict[str, Tensor]) -> Tensor:
    """(R, D) from level -> (N, A * D, H, W): the same rows of either detector."""
    return torch.cat([level.of_map(maps[level.name]) for level in positives])


def rows_of_all_levels(positives: list[LevelPositives]) -> tuple[Tensor, Tensor]:
    """Index (R,), (R,) of image and anchor into tensors over all levels' anchors."""
    image = torch.cat([level.image for level in positives])
    return image, torch.cat([level.anchor + level.first for level in positives])
