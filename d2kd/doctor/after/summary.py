# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What the console says of two runs: a table, the warnings and what to try next."""

from collections.abc import Iterator, Sequence

from ..finding import Finding, Status, render
from .bootstrap import COVERED, Difference
from .report import Report, SetReport

__all__ = ["summarize"]

# Classes with a sure gain or loss that are listed; the page has all.
_MOST_CLASSES = 6


def summarize(report: Report, advice: Sequence[Finding]) -> str:
    """A few lines of at most 110 columns.

    Args:
        report: of two runs.
        advice: from ``advise``.
    """
    lines = [f"{report.distilled.folder} against {report.baseline.folder}"]
    for tested in report.sets:
        lines += ["", *_table(tested)]
    shown = [x for x in advice[1:] if x.status is not Status.OK or x.advice]
    lines += ["", *map(render, [*report.notes, advice[0], *shown])]
    return "\n".join(lines)


def _table(tested: SetReport) -> Iterator[str]:
    heads = ["baseline", "distilled", "difference", f"{COVERED} % interval"]
    heads += ["teacher"] if tested.teacher else []
    yield f"{tested.name + f', {tested.images} images':<24}" + "".join(f"{x:>17}" for x in heads)
    teachers = {row.name: row.ours for row in tested.teacher}
    for row in _shown(tested.differences):
        cells = [f"{row.baseline:.2f}", f"{row.ours:.2f}", f"{row.gain:+.2f}"]
        cells.append(f"{row.low:+.2f} to {row.high:+.2f}")
        cells += [f"{teachers[row.name]:.2f}"] if teachers else []
        yield f"{row.name:<24}" + "".join(f"{x:>17}" for x in cells)


def _shown(rows: Sequence[Difference]) -> list[Difference]:
    """The whole and the sizes; of the classes those with the largest sure differences."""
    known = [row for row in rows if row.known]
    classes = [row for row in known if row.name.startswith("AP ")]
    whole = [row for row in known if row not in classes]
    sure = sorted((x for x in classes if x.sign), key=lambda x: -abs(x.gain))[:_MOST_CLASSES]
    return whole + sure
