# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The ablation's rows: stored as JSON, written as a table, drawn as bars."""

import json
import re
import statistics
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

from iopath.common.file_io import file_lock
from tabulate import tabulate

from experiments.plots import Bar, bar_chart
from experiments.suites import BASELINE, DETECTORS

__all__ = ["Row", "insert", "markdown", "merge", "write_report"]


@dataclass(frozen=True)
class Row:
    """One method's results over all seeds.

    Attributes:
        budget: "iterations" if it trains for its table's ``base_iterations``; "time" for a longer
            baseline, which trains as long as some method does.
        equal_time_iterations: iterations of the baseline that trains as long as this row.
        seconds_per_iter: on one thread, with nothing else running.
        teacher_ap: the teacher's, on the test split.
        ap, ap50: one value for each of ``seeds``.
    """

    detector: str
    method: str
    inherit: bool
    budget: str
    iterations: int
    base_iterations: int
    equal_time_iterations: int
    seconds_per_iter: float
    teacher_ap: float
    seeds: list[int]
    ap: list[float]
    ap50: list[float]
    config: str
    opts: list[str]

    def to_json(self) -> dict:
        summary = {"ap_mean": round(_mean(self.ap), 2), "ap_std": round(_std(self.ap), 2)}
        return {**asdict(self), **summary, "ap50_mean": round(_mean(self.ap50), 2)}

    @classmethod
    def from_json(cls, found: dict) -> "Row":
        return cls(**{name: found[name] for name in cls.__dataclass_fields__})

    @property
    def key(self) -> tuple:
        return (*self.table, self.method, self.budget, self.iterations)

    @property
    def table(self) -> tuple:
        return (self.detector, self.inherit, self.base_iterations)


def _mean(values: list[float]) -> float:
    return statistics.fmean(values)


def _std(values: list[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def write_report(rows: list[Row], folder: Path, name: str, document: Path) -> None:
    """Merge rows into ``<folder>/<name>.json`` and redraw tables and charts.

    Args:
        rows: of the latest run; they replace stored rows with the same key.
        folder: for the JSON and one chart for each detector.
        name: the suite's.
        document: Markdown; a detector's tables replace the text between the lines
            ``<!-- ablation <name> <detector> -->`` and ``<!-- end -->``, if it has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    # Two processes, one for each detector, may finish at the same time.
    with file_lock(str(path)):
        old = json.loads(path.read_text())["rows"] if path.is_file() else []
        rows = merge([Row.from_json(row) for row in old], rows)
        content = {"rows": [row.to_json() for row in rows]}
        path.write_text(json.dumps(content, indent=1) + "\n")
        for detector in sorted({row.detector for row in rows}):
            found = [row for row in rows if row.detector == detector]
            panels = {_title(table): _bars(part) for table, part in _tables(found).items()}
            suffix = "" if name == "shapes" else f"_{name}"
            bar_chart(panels, folder / f"{detector}{suffix}.png")
            insert(document, f"<!-- ablation {name} {detector} -->", markdown(found))
    print(markdown(rows))


def insert(document: Path, begin: str, text: str) -> None:
    """Put ``text`` between the lines ``begin`` and ``<!-- end -->``, if the document has them."""
    between = re.compile(
        rf"(?<={re.escape(begin)}\n).*?(?=^<!-- end -->$)", re.DOTALL | re.MULTILINE
    )
    # count=1: if nothing is between the lines yet, a second match would reach the next table's end.
    text = "\n".join(map(_wrap, text.splitlines()))
    document.write_text(between.sub(lambda _: f"\n{text}\n", document.read_text(), count=1))


def _wrap(line: str) -> str:
    """A line of prose at 100 columns; a table's row and a picture stay in one line."""
    if line.startswith(("|", "!")):
        return line
    return textwrap.fill(line, 100, break_long_words=False, break_on_hyphens=False)


def merge(old: list[Row], new: list[Row]) -> list[Row]:
    """Join rows, the new ones first; a new row replaces an old one of the same key."""
    rows = {row.key: row for row in new}
    for row in old:
        rows.setdefault(row.key, row)
    return sorted(rows.values(), key=lambda row: row.table)


def _tables(rows: list[Row]) -> dict[tuple, list[Row]]:
    tables: dict[tuple, list[Row]] = {}
    for row in rows:
        tables.setdefault(row.table, []).append(row)
    return tables


def _title(table: tuple) -> str:
    detector, inherit, iterations = table
    start = "students start from teacher parts" if inherit else "students start from scratch"
    return f"{DETECTORS[detector]}, {iterations} iterations, {start}"


def _baseline(rows: list[Row], iterations: int) -> Row | None:
    found = [r for r in rows if r.method == BASELINE and r.iterations == iterations]
    return found[0] if found else None


def _gain(row: Row, baseline: Row | None) -> tuple[float, float] | None:
    """Mean and standard deviation of the difference, over the seeds that both rows have."""
    if baseline is None:
        return None
    theirs = dict(zip(baseline.seeds, baseline.ap))
    pairs = [ap - theirs[seed] for seed, ap in zip(row.seeds, row.ap) if seed in theirs]
    return (_mean(pairs), _std(pairs)) if pairs else None


def _format_gain(gain: tuple[float, float] | None) -> str:
    return "-" if gain is None else f"{gain[0]:+.1f} ± {gain[1]:.1f}"


def markdown(rows: list[Row]) -> str:
    """Write one table for each detector, kind of start and length of training."""
    parts = []
    for table, found in _tables(rows).items():
        lines = [_line(row, found) for row in found]
        head = ["method", "iterations", "AP", "AP50", "s/iteration", "gain", "gain at equal time"]
        teacher = f"Teacher: AP {found[0].teacher_ap:.1f}. Seeds: {_seeds(found)}."
        parts.append(f"**{_title(table)}.** {teacher}\n\n{tabulate(lines, head, 'pipe')}\n")
    return "\n".join(parts)


def _seeds(rows: list[Row]) -> str:
    return ", ".join(str(seed) for seed in sorted({seed for row in rows for seed in row.seeds}))


def _line(row: Row, rows: list[Row]) -> list[str]:
    cells = [
        row.method,
        str(row.iterations),
        f"{_mean(row.ap):.1f} ± {_std(row.ap):.1f}",
        f"{_mean(row.ap50):.1f}",
        f"{row.seconds_per_iter:.3f}",
    ]
    if row.method == BASELINE:
        return [*cells, "", ""]
    equal_time = _gain(row, _baseline(rows, row.equal_time_iterations))
    kept = equal_time is not None and len(row.seeds) > 1 and equal_time[0] > 2 * equal_time[1]
    text = _format_gain(equal_time)
    gain = _format_gain(_gain(row, _baseline(rows, row.base_iterations)))
    return [*cells, gain, f"**{text}**" if kept else text]


def _bars(rows: list[Row]) -> list[Bar]:
    """One bar for the baseline and each method; longer baselines become marks on the bars."""
    bars = []
    for row in rows:
        if row.budget == "time":
            continue
        timed = _baseline(rows, row.equal_time_iterations) if row.method != BASELINE else None
        mark = None if timed is None else _mean(timed.ap)
        bars.append(Bar(row.method, _mean(row.ap), _std(row.ap), mark))
    return bars
