# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Differences with their intervals, one row each, beside a line at 0."""

from collections.abc import Sequence

from ..bootstrap import Difference
from .svg import COLORS, Scale, circle, drawing, line, number, text, ticks

__all__ = ["interval_chart"]

WIDTH, LEFT, RIGHT, ROW, TOP = 760, 150, 200, 24, 10
_UNSURE = "#8a8f98"


def interval_chart(rows: Sequence[Difference], title: str) -> str:
    """An SVG of one dot and one bar for each difference.

    Args:
        rows: whose differences are known.
        title: for readers that cannot see it.
    """
    rows = [row for row in rows if row.known]
    ends = [0.0, *(x for row in rows for x in (row.low, row.high, row.gain))]
    low, high = min(ends), max(ends)
    margin = 0.05 * (high - low) or 1.0
    scale = Scale(low - margin, high + margin, LEFT, WIDTH - RIGHT)
    bottom = TOP + ROW * len(rows)
    parts = []
    for tick in ticks(low - margin, high + margin):
        kind = "zero" if tick == 0 else "grid"
        parts += [line(scale(tick), TOP, scale(tick), bottom, kind)]
        label = f"{tick:+g}" if tick else "0"
        parts += [text(scale(tick), bottom + 16, label, "middle", "small")]
    for index, row in enumerate(rows):
        parts += _row(row, scale, TOP + ROW * index + ROW / 2)
    parts.append(text(scale(0), bottom + 34, "AP, distilled - baseline", "middle", "small"))
    return drawing(WIDTH, bottom + 42, parts, title)


def _row(row: Difference, scale: Scale, y: float) -> list[str]:
    color = _UNSURE
    if row.sign:
        color = COLORS["distilled"] if row.sign > 0 else COLORS["baseline"]
    style = f'stroke="{color}" stroke-width="3" stroke-linecap="round"'
    low, high = scale(row.low), scale(row.high)
    label = f"{row.gain:+.2f}  ({row.low:+.2f} to {row.high:+.2f})"
    kind = "strong" if row.name == "AP" else ""
    return [
        text(LEFT - 12, y + 4, row.name, "end", kind),
        f'<line x1="{low}" y1="{y}" x2="{high}" y2="{y}" {style}/>',
        circle(scale(row.gain), y, color, 5, f"{row.name} {number(round(row.gain, 2))}"),
        text(WIDTH - RIGHT + 12, y + 4, label, "start", f"{kind} figure".strip()),
    ]
