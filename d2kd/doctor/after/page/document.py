# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The whole page: one HTML file that needs no other."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ....utils.files import atomic_write
from ...finding import Finding, Status
from ..report import Report
from .html import findings_list, paragraph, section, table
from .result_sections import result_sections
from .style import STYLE
from .training_sections import training_sections

__all__ = ["render_page", "write_page"]

_VERDICTS = {
    "gain": "It helped",
    "loss": "It did harm",
    "no evidence": "No evidence that it helped",
}


def write_page(report: Report, advice: Sequence[Finding], path: Path) -> None:
    """Write the page; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(str(path), "w") as file:
        file.write(render_page(report, advice))


def render_page(report: Report, advice: Sequence[Finding]) -> str:
    """The HTML of a report.

    Args:
        report: of two runs.
        advice: from ``advise``; the first is the verdict.
    """
    title = f"{report.distilled.name} against {report.baseline.name}"
    verdict, *others = advice
    parts = [
        f"<h1>{escape(title)}</h1>",
        paragraph("Why did distillation (not) help? Written by d2kd's doctor.", "soft"),
        _verdict(verdict),
        _next_steps(others),
        section("Before you trust it", findings_list(report.notes)) if report.notes else "",
        *result_sections(report),
        *training_sections(report),
        _measured(report),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(filter(None, parts))
    start = f'<!DOCTYPE html>\n<html lang="en"><head>{head}{view}</head>'
    return f"{start}\n<body>\n{body}\n</body></html>\n"


def _verdict(found: Finding) -> str:
    kind = "verdict" if found.status is Status.OK else "verdict warn"
    advice = paragraph(found.advice, "advice") if found.advice else ""
    head = f"<h3>{escape(_VERDICTS[found.check])}</h3>"
    return f'<div class="{kind}">{head}{paragraph(found.text)}{advice}</div>'


def _next_steps(advice: Sequence[Finding]) -> str:
    steps = [x for x in advice if x.advice]
    known = [x for x in advice if not x.advice]
    names = escape(", ".join(x.check for x in known))
    return section(
        "What to try next",
        findings_list(sorted(steps, key=lambda x: x.status is Status.OK)),
        (
            f"<details><summary>In order: {names}</summary>{findings_list(known)}</details>"
            if known
            else ""
        ),
    )


def _measured(report: Report) -> str:
    runs = (report.distilled, report.baseline)
    node = report.distilled.cfg.DISTILL
    rows = [
        ["folder", *(run.folder for run in runs)],
        ["detector", *(run.cfg.MODEL.META_ARCHITECTURE for run in runs)],
        ["iterations", *(f"{r.iterations} of {r.cfg.SOLVER.MAX_ITER}" for r in runs)],
        ["seed", *(str(run.cfg.SEED) for run in runs)],
        ["checkpoint", *(Path(run.checkpoint).name for run in runs)],
        ["losses", ", ".join(node.LOSSES), "none"],
        ["teacher", node.TEACHER.CONFIG_FILE, "none"],
    ]
    for tested in report.sets:
        rows.append([tested.name, tested.sources["distilled"], tested.sources["baseline"]])
    sources = [x.sources["teacher"] for x in report.sets if "teacher" in x.sources]
    words = (
        "Detections that a run has written itself are used where their AP, and that of every "
        "class, is the one that its metrics.json has at the iteration of the checkpoint; otherwise "
        "the checkpoint was evaluated anew."
    )
    return section(
        "What was measured",
        f'<div class="facts">{table(["", "distilled", "baseline"], rows)}</div>',
        paragraph(words, "soft"),
        paragraph(f"Teacher: {sources[0]}.", "soft") if sources else "",
    )
