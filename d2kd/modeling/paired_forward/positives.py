# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Where the student's positives lie in the maps of a dense head.

Shape shorthand in this file:
    N: images; A: anchors per location; H, W: size of a feature level
    D: values per anchor; R: regions = the student's positives of all images together
"""

from typing import NamedTuple

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes
from torch import Tensor

from ...utils.errors import PairMismatchError
from ..meta_arch.gfl.losses import expected_distance
from .registry import RequiredOutputs

__all__ = [
    "LevelPositives",
    "box_outputs",
    "dense_boxes",
    "find_positives",
    "gather",
    "rows_of_all_levels",
]


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
        rows = self._rows(x)
        return rows[self.image, self.anchor % rows.shape[1], :, self.anchor // rows.shape[1]]

    def all_of_map(self, x: Tensor) -> Tensor:
        """The rows of all anchors of the level, (N, H * W * A, D), from (N, A * D, H, W)."""
        return self._rows(x).permute(0, 3, 1, 2).flatten(1, 2)

    def _rows(self, x: Tensor) -> Tensor:
        """(N, A, D, H * W): anchors are counted within a cell first, channels within an anchor."""
        if x.shape[-2:] != self.size:
            raise PairMismatchError(
                f"level {self.name!r} is {tuple(self.size)} (height, width) in the student and "
                f"{tuple(x.shape[-2:])} in the teacher: both must have the same strides and pad "
                "images to the same multiple"
            )
        return x.flatten(2).unflatten(1, (self.anchors_per_cell, -1))


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


def dense_boxes(
    levels: list[LevelPositives], maps: dict[str, Tensor], required: RequiredOutputs
) -> dict[str, dict[str, Tensor]]:
    """Those of dense_deltas and dense_box_bins that are required, from the box branch's maps."""
    found = {}
    if "dense_deltas" in required.requires:
        found["dense_deltas"] = {x.name: _deltas(x.all_of_map(maps[x.name])) for x in levels}
    if "dense_box_bins" in required.requires:
        found["dense_box_bins"] = {
            x.name: x.all_of_map(maps[x.name]).unflatten(2, (4, -1)) for x in levels
        }
    return found


def _deltas(rows: Tensor) -> Tensor:
    """Rows (..., 4) of deltas as they are, those (..., 4 * E) of bins by their expectation."""
    return rows if rows.shape[-1] == 4 else expected_distance(rows.unflatten(-1, (4, -1)))


def box_outputs(rows: Tensor) -> dict[str, Tensor]:
    """The fields of DetectorOutputs in rows (R, 4) of deltas or (R, 4 * E) of bins."""
    if rows.shape[1] == 4:
        return {"deltas": rows}
    return {"deltas": _deltas(rows), "box_bins": rows.unflatten(1, (4, -1))}
