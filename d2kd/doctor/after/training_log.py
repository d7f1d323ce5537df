# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""metrics.json: what a training logged, iteration by iteration."""

import json
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

from ...modeling import split_losses
from ...utils.errors import D2kdError

__all__ = ["Series", "TrainingLog", "read_log"]


class Series(NamedTuple):
    """One logged value over the training.

    Attributes:
        iterations: rising.
        values: finite, one for each iteration.
    """

    iterations: list[int]
    values: list[float]


class TrainingLog(NamedTuple):
    """The scalars of a training.

    Attributes:
        rows: iteration -> name -> value, in order.
    """

    rows: dict[int, dict[str, float]]

    def series(self, name: str) -> Series:
        """One scalar over time; empty if it was not logged."""
        found = [(i, row[name]) for i, row in self.rows.items() if name in row]
        return _series(found)

    def names(self, start: str, end: str = "") -> list[str]:
        """The scalars' names with this start and end, in the order of the alphabet."""
        known = {name for row in self.rows.values() for name in row}
        return sorted(name for name in known if name.startswith(start) and name.endswith(end))

    def loss_ratios(self) -> dict[str, Series]:
        """Each distillation loss over the sum of the detection losses, by the loss's name."""
        found: dict[str, list[tuple[int, float]]] = {}
        for iteration, row in self.rows.items():
            losses = {k: v for k, v in row.items() if k.startswith("loss_") and "/" not in k}
            detection, distillation = split_losses(losses)
            whole = sum(detection.values())
            for name, value in distillation.items():
                if whole > 0:
                    found.setdefault(name, []).append((iteration, value / whole))
        return {name: _series(points) for name, points in found.items()}

    def average_precision(self, dataset_name: str) -> Series:
        """The AP of every evaluation, in percent; of one test set, its name is not in the log."""
        found = self.series(f"{dataset_name}/bbox/AP")
        return found if found.values else self.series("bbox/AP")


def read_log(folder: str, last: int | None = None) -> TrainingLog:
    """Read metrics.json; empty if it is not there.

    A later run in the same folder, and a resumed one, write more rows: of each iteration the last
    counts, and what an earlier run logged beyond it is dropped.

    Args:
        folder: OUTPUT_DIR.
        last: iteration of the checkpoint; what comes after is left out. None: nothing is.

    Raises:
        D2kdError: a line is no JSON object.
    """
    rows: dict[int, dict[str, float]] = {}
    now = -1
    for row in _lines(os.path.join(folder, "metrics.json")):
        iteration = int(row.get("iteration", now))
        # An evaluation may be written after later steps; steps themselves are in order.
        if "total_loss" in row:
            if iteration < now:
                rows = {i: values for i, values in rows.items() if i < iteration}
            now = iteration
        rows.setdefault(iteration, {}).update(row)
    # The last evaluation is logged at the number of the step that would come next.
    kept = {i: x for i, x in rows.items() if last is None or i <= last + 1}
    return TrainingLog(dict(sorted(kept.items())))


def _lines(path: str) -> Iterator[dict[str, float]]:
    if not os.path.isfile(path):
        return
    with open(path) as file:
        lines = file.read().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # cut off by a kill
                return
            raise D2kdError(f"{path}, line {number} is no JSON: remove it") from error
        if not isinstance(row, dict):
            raise D2kdError(f"{path}, line {number} is no JSON object: remove it")
        yield row


def _series(points: list[tuple[int, float]]) -> Series:
    kept = [(i, float(x)) for i, x in points if isinstance(x, (int, float)) and math.isfinite(x)]
    return Series([i for i, _ in kept], [x for _, x in kept])
