# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The rows of ``experiments.curves``: stored as JSON, written as tables, drawn over time."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from iopath.common.file_io import file_lock
from tabulate import tabulate

from experiments.plots import Line, curve_chart
from experiments.report import insert
from experiments.suites import BASELINE, DETECTORS

__all__ = ["Curve", "converged_at", "write_curves"]

# The baseline has converged where twice the iterations gain less than this, in AP.
_STILL_GAINS = 1.0
_DATA = {"shapes": "shapes", "bccd": "BCCD", "cards": "cards"}


@dataclass(frozen=True)
class Curve:
    """One method at one length of the schedule, over all seeds.

    Attributes:
        paper: "TAR", "FRS", "SSIM", or "" where the method is none of these papers'.
        at_convergence: this length is the baseline's convergence.
        ap, seconds: one for each of ``seeds``; seconds of training without evaluation.
    """

    suite: str
    student: str
    detector: str
    method: str
    paper: str
    iterations: int
    seeds: list[int]
    ap: list[float]
    seconds: list[float]
    at_convergence: bool = False

    @property
    def group(self) -> tuple[str, str, str]:
        """Of curves that share a baseline."""
        return (self.suite, self.student, self.detector)

    @property
    def key(self) -> tuple:
        return (*self.group, self.method, self.iterations)


def converged_at(rows: Sequence[Curve]) -> int | None:
    """The baseline's convergence by rows of one group on the validation part; None if unknown."""
    means = {r.iterations: statistics.fmean(r.ap) for r in rows if r.method == BASELINE}
    for length in sorted(means):
        if 2 * length in means and means[2 * length] - means[length] < _STILL_GAINS:
            return length
    return None


def _join(old: Curve, new: Curve) -> Curve:
    """The new row, with the seeds that only the old one has."""
    points = dict(zip(old.seeds, zip(old.ap, old.seconds)))
    points.update(zip(new.seeds, zip(new.ap, new.seconds)))
    seeds = sorted(points)
    ap, seconds = (list(column) for column in zip(*(points[seed] for seed in seeds)))
    return replace(new, seeds=seeds, ap=ap, seconds=seconds)


def _read(path: Path) -> list[Curve]:
    return [Curve(**row) for row in json.loads(path.read_text())["rows"]] if path.is_file() else []


def write_curves(rows: Sequence[Curve], folder: Path, split: str, document: Path) -> None:
    """Merge rows into the JSON file of their split, and redraw their group's table and chart.

    Args:
        rows: of one group.
        folder: for curves.json, curves_val.json and <suite>_<student>_<detector>.png.
        split: "test" or "val"; tables and charts show the test part alone.
        document: Markdown; the table replaces the text between the lines
            ``<!-- curves <suite> <student> <detector> -->`` and ``<!-- end -->``, if it has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("curves.json" if split == "test" else "curves_val.json")
    with file_lock(str(path)):
        known = {row.key: row for row in _read(path)}
        for row in rows:
            known[row.key] = _join(known[row.key], row) if row.key in known else row
        converged = converged_at(_of_group(_read(folder / "curves_val.json"), rows[0].group))
        ordered = [
            (
                replace(row, at_convergence=row.iterations == converged)
                if row.group == rows[0].group
                else row
            )
            for row in sorted(known.values(), key=lambda row: (*row.group, row.iterations))
        ]
        content = {"rows": [asdict(row) for row in ordered]}
        path.write_text(json.dumps(content, indent=1) + "\n")
        mine = _of_group(ordered, rows[0].group)
        if split == "test":
            suite, student, detector = rows[0].group
            if len({row.iterations for row in mine}) > 1:
                curve_chart(_lines(mine), folder / f"{suite}_{student}_{detector}.png")
            insert(document, f"<!-- curves {suite} {student} {detector} -->", markdown(mine))
    print(markdown(mine))


def _of_group(rows: Sequence[Curve], group: tuple) -> list[Curve]:
    return [row for row in rows if row.group == group]


def markdown(rows: Sequence[Curve]) -> str:
    """The table of one group: a row for each method, AP and gain for each length."""
    suite, student, detector = rows[0].group
    lengths = sorted({row.iterations for row in rows})
    by_key = {(row.method, row.iterations): row for row in rows}
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = []
    for method in methods:
        cells = [method]
        for length in lengths:
            row, baseline = by_key.get((method, length)), by_key.get((BASELINE, length))
            cells += [_ap(row), "" if method == BASELINE else _gain(row, baseline)]
        lines.append(cells)
    head = ["method"]
    for length in lengths:
        head += [f"AP, {length} iterations", "gain"]
    seeds = sorted({seed for row in rows for seed in row.seeds})
    title = f"**{DETECTORS[detector]} on {_DATA[suite]}, student {student}.** Seeds: "
    title += f"{', '.join(map(str, seeds))}; (1) and (2) say how many a row has if not three. "
    title += _convergence(rows)
    return f"{title}\n\n{tabulate(lines, head, 'pipe')}\n"


def _convergence(rows: Sequence[Curve]) -> str:
    at = {row.iterations for row in rows if row.at_convergence}
    if at:
        return f"The baseline converges at {at.pop()} iterations."
    return "The baseline has not converged at these lengths, or nobody has looked."


def _ap(row: Curve | None) -> str:
    return "-" if row is None else _spread(row.ap, ".1f")


def _spread(values: Sequence[float], form: str) -> str:
    """Mean and deviation; of one or two seeds their number, for such a deviation says little."""
    text = f"{statistics.fmean(values):{form}}"
    text += f" ± {_std(values):.1f}" if len(values) > 1 else ""
    return text + ("" if len(values) > 2 else f" ({len(values)})")


def _gain(row: Curve | None, baseline: Curve | None) -> str:
    """Of the paired differences; of three seeds or more bold above twice the deviation."""
    if row is None or baseline is None:
        return "-"
    theirs = dict(zip(baseline.seeds, baseline.ap))
    pairs = [ap - theirs[seed] for seed, ap in zip(row.seeds, row.ap) if seed in theirs]
    if not pairs:
        return "-"
    text = _spread(pairs, "+.1f")
    return f"**{text}**" if len(pairs) > 2 and statistics.fmean(pairs) > 2 * _std(pairs) else text


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _lines(rows: Sequence[Curve]) -> list[Line]:
    """AP over minutes of training, a line for each method."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        found = sorted((r for r in rows if r.method == method), key=lambda r: r.iterations)
        minutes = [statistics.fmean(row.seconds) / 60 for row in found]
        means = [statistics.fmean(row.ap) for row in found]
        lines.append(Line(method, minutes, means, [_std(row.ap) for row in found]))
    return lines
