# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Drawing as SVG text: elements, round ticks, and numbers as a reader wants them."""

import math
from collections.abc import Sequence
from html import escape

__all__ = [
    "COLORS",
    "MORE_COLORS",
    "Scale",
    "circle",
    "drawing",
    "line",
    "number",
    "rectangle",
    "text",
    "ticks",
]

# Of Okabe and Ito, which readers with any colour vision tell apart.
COLORS = {"distilled": "#0072b2", "baseline": "#d55e00", "teacher": "#009e73"}
# Of losses, which are nobody's.
MORE_COLORS = ("#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")


class Scale:
    """Values to pixels, linear or by powers of ten."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False):
        """
        Args:
            low, high: values at the ends; both above 0 if ``log``.
            start, end: their pixels.
        """
        self.log = log
        self.low, self.high = (math.log10(low), math.log10(high)) if log else (low, high)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        x = math.log10(value) if self.log else value
        part = (x - self.low) / ((self.high - self.low) or 1)
        return round(self.start + part * (self.end - self.start), 1)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``."""
    step = (high - low) / most or 1.0
    power = 10.0 ** math.floor(math.log10(step))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """As short as it can be: 0.01, 2.5, 300."""
    return f"{value:g}" if abs(value) < 1e5 else f"{value / 1000:g}k"


def line(x0: float, y0: float, x1: float, y1: float, kind: str = "grid") -> str:
    """A straight line of a class of the style sheet."""
    return f'<line class="{kind}" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>'


def circle(x: float, y: float, color: str, radius: float = 4, title: str = "") -> str:
    """A dot, with words that appear under the pointer."""
    inside = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{color}">{inside}</circle>'


def rectangle(x: float, y: float, width: float, height: float, color: str) -> str:
    """A filled rectangle."""
    return f'<rect x="{x}" y="{y}" width="{max(width, 0):.1f}" height="{height}" fill="{color}"/>'


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """Words at a place; ``anchor`` start, middle or end."""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def drawing(width: int, height: int, parts: Sequence[str], title: str) -> str:
    """The whole picture, as wide as the page lets it be."""
    return (
        f'<svg role="img" viewBox="0 0 {width} {height}" style="max-width:{width}px">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
