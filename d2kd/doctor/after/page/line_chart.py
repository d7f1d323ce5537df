# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Values over the iterations of a training, one line each."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..training_log import Series
from .svg import Scale, circle, drawing, line, number, text, ticks

__all__ = ["Line", "line_chart"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 300, 64, 16, 34, 44


class Line(NamedTuple):
    """One line.

    Attributes:
        name: for the legend.
        color: of SVG.
        series: its points.
        level: it is one value, drawn across the chart and dashed.
    """

    name: str
    color: str
    series: Series
    level: bool = False


def line_chart(
    lines: Sequence[Line],
    title: str,
    *,
    log: bool = False,
    marks: Sequence[float] = (),
    around_zero: bool = False,
) -> str:
    """An SVG of lines with a legend above; "" if there is nothing to draw.

    Args:
        lines: those without points are left out.
        title: of the vertical axis.
        log: powers of ten on the vertical axis; values of 0 and below are left out.
        marks: values to draw a dashed line at.
        around_zero: show 0 in any case.
    """
    lines = [_positive(x) if log else x for x in lines]
    lines = [x for x in lines if x.series.values]
    times = [i for x in lines if not x.level for i in x.series.iterations]
    if not times:
        return ""
    values = [v for x in lines for v in x.series.values] + list(marks)
    across = Scale(min(0, *times), max(times), LEFT, WIDTH - RIGHT)
    up = _vertical(values + ([0.0] if around_zero else []), log)
    parts = [*_frame(across, up, times), *_marks(marks, up), *_legend(lines)]
    for one in lines:
        parts += _draw(one, across, up)
    parts.append(text(LEFT, 12, title, "start", "small strong"))
    return drawing(WIDTH, HEIGHT, parts, title)


def _positive(one: Line) -> Line:
    kept = [(i, v) for i, v in zip(*one.series) if v > 0]
    return one._replace(series=Series([i for i, _ in kept], [v for _, v in kept]))


def _vertical(values: Sequence[float], log: bool) -> Scale:
    low, high = min(values), max(values)
    if log:
        low, high = (10.0 ** f(math.log10(x)) for f, x in ((math.floor, low), (math.ceil, high)))
        high = high if high > low else low * 10
    else:
        margin = 0.06 * (high - low) or 1.0
        low, high = min(low - margin, low) if low < 0 else max(0.0, low - margin), high + margin
    return Scale(low, high, HEIGHT - BOTTOM, TOP, log)


def _frame(across: Scale, up: Scale, times: Sequence[int]) -> list[str]:
    parts, bottom = [], HEIGHT - BOTTOM
    if up.log:
        values = [10.0**i for i in range(round(up.low), round(up.high) + 1)]
    else:
        values = ticks(up.low, up.high, 5)
    for value in values:
        kind = "zero" if value == 0 else "grid"
        parts += [line(LEFT, up(value), WIDTH - RIGHT, up(value), kind)]
        parts += [text(LEFT - 8, up(value) + 4, number(value), "end", "small")]
    for time in ticks(0, max(times), 6):
        parts.append(text(across(time), bottom + 18, number(time), "middle", "small"))
    parts.append(text(WIDTH - RIGHT, bottom + 36, "iteration", "end", "small"))
    return parts


def _marks(marks: Sequence[float], up: Scale) -> list[str]:
    return [line(LEFT, up(x), WIDTH - RIGHT, up(x), "mark") for x in marks]


def _legend(lines: Sequence[Line]) -> list[str]:
    parts, x = [], float(WIDTH - RIGHT)
    for one in reversed(lines):
        x -= 8 * len(one.name)
        parts.append(text(x, 12, one.name, "start", "small"))
        dashes = ' stroke-dasharray="5 4"' if one.level else ""
        parts.append(
            f'<line x1="{x - 26}" y1="8" x2="{x - 6}" y2="8" stroke="{one.color}" '
            f'stroke-width="3"{dashes}/>'
        )
        x -= 42
    return parts


def _draw(one: Line, across: Scale, up: Scale) -> list[str]:
    style = f'stroke="{one.color}" stroke-width="2" fill="none"'
    if one.level:
        y = up(one.series.values[-1])
        ends = f'x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}"'
        return [f'<line {ends} {style} stroke-dasharray="5 4"/>']
    points = [(across(i), up(v)) for i, v in zip(*one.series)]
    path = " ".join(f"{x},{y}" for x, y in points)
    dots = points if len(points) <= 60 else points[-1:]
    return [f'<polyline points="{path}" {style}/>', *(circle(*p, one.color, 2.5) for p in dots)]
