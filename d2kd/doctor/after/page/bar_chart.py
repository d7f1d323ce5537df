# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Shares from 0 to 1, several bars to a row."""

from collections.abc import Sequence

from .svg import COLORS, drawing, rectangle, text

__all__ = ["bar_chart"]

WIDTH, LEFT, RIGHT, BAR, GAP = 760, 150, 70, 12, 10


def bar_chart(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], title: str) -> str:
    """An SVG of horizontal bars.

    Args:
        rows: (label, (who, share) for each bar); who is a key of COLORS.
        title: for readers that cannot see it.
    """
    parts, y = _legend([who for who, _ in rows[0][1]]), 26.0
    for label, bars in rows:
        middle = y + BAR * len(bars) / 2 + 4
        parts.append(text(LEFT - 12, middle, label, "end"))
        for who, share in bars:
            width = share * (WIDTH - LEFT - RIGHT)
            parts.append(rectangle(LEFT, y, WIDTH - LEFT - RIGHT, BAR - 2, "var(--faint)"))
            parts.append(rectangle(LEFT, y, width, BAR - 2, COLORS[who]))
            parts.append(text(WIDTH - RIGHT + 8, y + BAR - 2, f"{share:.2f}", "start", "small"))
            y += BAR
        y += GAP
    return drawing(WIDTH, int(y), parts, title)


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], float(LEFT)
    for who in names:
        parts += [rectangle(x, 2, 12, 10, COLORS[who]), text(x + 18, 12, who, "start", "small")]
        x += 40 + 8 * len(who)
    return parts
