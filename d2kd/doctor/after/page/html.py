# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The few HTML elements that the page is made of."""

from collections.abc import Sequence
from html import escape

from ...finding import Finding, Status

__all__ = ["findings_list", "paragraph", "section", "table"]


def paragraph(words: str, kind: str = "") -> str:
    """Words as they are."""
    return f"<p{_kind(kind)}>{escape(words)}</p>"


def section(heading: str, *parts: str) -> str:
    """A heading and what stands below it; empty parts are left out."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(filter(None, parts))}</section>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], strong: Sequence[bool] = ()) -> str:
    """A table whose first column names the row.

    Args:
        heads: of the columns.
        rows: cells as text.
        strong: which rows are printed bold; none by default.
    """
    head = "".join(f"<th>{escape(x)}</th>" for x in heads)
    lines = []
    for index, (first, *rest) in enumerate(rows):
        cells = "".join(f"<td>{escape(x)}</td>" for x in rest)
        kind = "strong" if index < len(strong) and strong[index] else ""
        lines.append(f"<tr{_kind(kind)}><th>{escape(first)}</th>{cells}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
        "</table></div>"
    )


def findings_list(findings: Sequence[Finding]) -> str:
    """One item for each finding, its advice below it."""
    items = []
    for found in findings:
        kind = "warn" if found.status is not Status.OK else "fine"
        advice = f'<p class="advice">{escape(found.advice)}</p>' if found.advice else ""
        items.append(
            f'<li class="{kind}"><b>{escape(found.check)}</b> <p>{escape(found.text)}</p>'
            f"{advice}</li>"
        )
    return f'<ul class="findings">{"".join(items)}</ul>'


def _kind(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
