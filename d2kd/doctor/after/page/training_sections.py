# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The sections on the training: what came over from the teacher, loss ratios and gradients."""

from ..report import Report
from .bar_chart import bar_chart
from .html import paragraph, section, table
from .line_chart import Line, line_chart
from .svg import MORE_COLORS

__all__ = ["training_sections"]


def training_sections(report: Report) -> list[str]:
    """In order; those of what was not measured say so or are left out."""
    return [x for x in (_imitation(report), _ratios(report), _gradients(report)) if x]


def _imitation(report: Report) -> str:
    ours, theirs = report.imitation
    if ours is None:
        return ""
    students = {"distilled": ours} | ({"baseline": theirs} if theirs else {})
    rows = [
        (level, [(who, x.similarity.get(level, 0.0)) for who, x in students.items()])
        for level in ours.similarity
    ]
    words = (
        f"On {ours.images} test images. Linear CKA compares feature maps without an adapter, where "
        "the feature loss compares them (under its mask): 1 if the teacher's map is the student's "
        "up to a rotation and a scale of its channels, near 0 if they are unrelated."
    )
    note = f"Left out: {report.imitation_note}." if report.imitation_note else ""
    chart = bar_chart(rows, "similarity of features by level") if rows else ""
    return section(
        "How near the students came to the teacher",
        paragraph(words),
        chart,
        _losses(report),
        paragraph(note, "soft") if note else "",
    )


def _losses(report: Report) -> str:
    ours, theirs = report.imitation
    rows = []
    for name, value in ours.losses.items():
        other = theirs.losses.get(name) if theirs else None
        rows.append([f"loss_distill_{name}", _figure(value), _figure(other)])
        for level, term in ours.per_level.get(name, {}).items():
            other = theirs.per_level.get(name, {}).get(level) if theirs else None
            rows.append([f"- {level}", _figure(term), _figure(other)])
    strong = [row[0].startswith("loss") for row in rows]
    words = (
        "The run's own losses on the same images, with their masks, weights and adapters, at "
        "schedule factor 1. Those of boxes and classes are taken on each student's own positive "
        "regions; DISTILL.REG.GATE may leave out others of one student than of the other."
    )
    return paragraph(words) + table(["", "distilled", "baseline"], rows, strong)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _ratios(report: Report) -> str:
    ratios = report.distilled.log.loss_ratios()
    heading = "Distillation losses over detection losses"
    if not any(x.values for x in ratios.values()):
        return section(heading, paragraph("There is no metrics.json with losses in the folder."))
    lines = [Line(name, c, x) for c, (name, x) in zip(MORE_COLORS, ratios.items())]
    words = (
        "Each distillation loss over the sum of the detection losses, as trained (with the "
        "schedule's factor). Beyond the dotted lines, 10 and 0.01, one side hardly counts."
    )
    chart = line_chart(lines, "ratio of losses", log=True, marks=(0.01, 10.0))
    return section(heading, paragraph(words), chart)


def _gradients(report: Report) -> str:
    log, heading = report.distilled.log, "Gradients"
    start = "distill_gradient/"
    charts = []
    for end, title, log_scale in (
        ("_ratio", "norm, over that of the detection losses", True),
        ("_cosine", "cosine to the detection losses", False),
    ):
        names = log.names(start, end)
        lines = [
            Line(name[len(start) : -len(end)], color, log.series(name))
            for color, name in zip(MORE_COLORS, names)
        ]
        charts.append(line_chart(lines, title, log=log_scale, around_zero=not log_scale))
    if not any(charts):
        words = "They were not logged: set DISTILL.LOG_GRADIENTS to see their shares and cosines."
        return section(heading, paragraph(words))
    words = (
        "Of each distillation loss beside that of the detection losses. A cosine below 0 says that "
        "the two work against each other."
    )
    return section(heading, paragraph(words), *charts)
