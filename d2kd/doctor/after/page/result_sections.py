# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The sections on AP: the differences, their tables, AP over the training, and the teacher."""

import math
from collections.abc import Iterator

from ..bootstrap import COVERED, Difference
from ..report import Report, SetReport
from ..training_log import Series
from .html import paragraph, section, table
from .interval_chart import interval_chart
from .line_chart import Line, line_chart
from .svg import COLORS

__all__ = ["result_sections"]


# A teacher whose AP is more than so many times the students' would flatten their lines.
_FAR = 2.5


def result_sections(report: Report) -> Iterator[str]:
    """For each test set, in order."""
    for tested in report.sets:
        yield _differences(report, tested)
        yield _growth(report, tested)
        if tested.teacher:
            yield _teacher(tested)


def _differences(report: Report, tested: SetReport) -> str:
    intro = (
        f"{tested.images} images, {tested.objects} objects. The bars are {COVERED} % intervals of "
        f"a paired bootstrap over images: {report.resamples} resamples (seed {report.seed}), both "
        "students evaluated on the same ones. Grey: the interval holds 0. They say what other test "
        "images would change, not what another training seed would."
    )
    return section(
        f"AP on {tested.name}",
        paragraph(intro),
        interval_chart(tested.differences, f"differences of AP on {tested.name}"),
        _table(tested),
    )


def _table(tested: SetReport) -> str:
    teachers = {row.name: row for row in tested.teacher}
    heads = ["", "baseline", "distilled", "difference", f"{COVERED} % interval"]
    rows = [
        [
            row.name,
            _percent(row.baseline),
            _percent(row.ours),
            _gain(row),
            f"{row.low:+.2f} to {row.high:+.2f}" if row.known else "no objects",
            *([_percent(teachers[row.name].ours)] if teachers else []),
        ]
        for row in tested.differences
    ]
    strong = [bool(row.known and row.sign) for row in tested.differences]
    note = "Bold: the whole interval is on one side of 0." if any(strong) else ""
    heads += ["teacher"] if teachers else []
    return table(heads, rows, strong) + (paragraph(note, "soft") if note else "")


def _growth(report: Report, tested: SetReport) -> str:
    runs = {"distilled": report.distilled, "baseline": report.baseline}
    lines = [
        Line(who, COLORS[who], run.log.average_precision(tested.name)) for who, run in runs.items()
    ]
    words = ""
    if tested.teacher:
        level, values = tested.teacher[0].ours, [v for x in lines for v in x.series.values]
        if level <= _FAR * max(values, default=0.0):
            top = Series([0], [level])
            lines.append(Line("teacher", COLORS["teacher"], top, level=True))
        else:
            words = f"The teacher's AP, {level:.1f}, is far above the chart."
    if max(len(one.series.values) for one in lines[:2]) < 2:
        words = "Each run was evaluated once: set TEST.EVAL_PERIOD to see AP over the training."
        return section(f"AP on {tested.name} over the training", paragraph(words))
    chart = line_chart(lines, "AP of each evaluation", around_zero=True)
    note = paragraph(words, "soft") if words else ""
    return section(f"AP on {tested.name} over the training", chart, note)


def _teacher(tested: SetReport) -> str:
    whole = tested.found[0] if tested.found else None
    parts = [paragraph(_who_is_better(tested.teacher))]
    if whole:
        words = (
            f"Of {whole.objects} objects the teacher misses {whole.missed}: it has no detection of "
            "their class with IoU 0.5 and a high score, high being where its F1 over all classes "
            "is best. The students are asked in the same way, each at its own score."
        )
        parts += [paragraph(words), _found_table(tested)]
    if tested.agreement:
        parts += [_agreement_table(tested)]
    return section(f"The teacher on {tested.name}", *parts)


def _who_is_better(rows: list[Difference]) -> str:
    lead = rows[0]
    text = f"The teacher has AP {lead.ours:.1f}, {lead.gain:+.1f} against the baseline"
    below = [x.name[3:] for x in rows if x.name.startswith("AP ") and x.known and x.gain < 0]
    if below:
        return f"{text}. It is below the baseline on {', '.join(below)}."
    return f"{text}, and is above the baseline on every class."


def _found_table(tested: SetReport) -> str:
    heads = ["", "objects", "teacher misses", "of the missed, distilled finds", "baseline finds"]
    heads += ["of the others, distilled finds", "baseline finds"]
    rows = [
        [
            x.name,
            str(x.objects),
            _share(x.missed, x.objects),
            _share(x.ours_of_missed, x.missed),
            _share(x.baseline_of_missed, x.missed),
            _share(x.ours_of_found, x.found),
            _share(x.baseline_of_found, x.found),
        ]
        for x in tested.found
    ]
    return table(heads, rows, [True])


def _agreement_table(tested: SetReport) -> str:
    ours, theirs = tested.agreement
    heads = ["the teacher's confident boxes", "distilled", "baseline"]
    rows = [
        ["met by a box of the class with IoU 0.5", f"{ours.met:.0%}", f"{theirs.met:.0%}"],
        ["mean IoU of these pairs", f"{ours.iou:.3f}", f"{theirs.iou:.3f}"],
        ["mean difference of their scores", f"{ours.score_gap:.3f}", f"{theirs.score_gap:.3f}"],
    ]
    words = (
        f"How near the students' boxes and class scores are to the teacher's, on the same regions: "
        f"its {ours.boxes} boxes of a high score."
    )
    return paragraph(words) + table(heads, rows)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _percent(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _gain(row: Difference) -> str:
    return f"{row.gain:+.2f}" if row.known else "-"
