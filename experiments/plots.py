# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Plots: detections side by side, bars with the spread over seeds, and growth of costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # servers have no display

import cv2
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

__all__ = [
    "Bar",
    "Detections",
    "Line",
    "bar_chart",
    "curve_chart",
    "detections_grid",
    "loglog_chart",
]

_COLOURS = ("#e6194b", "#4363d8", "#f58231", "#3cb44b", "#b42ee6", "#00b7c7", "#ffd400", "#f032e6")
# Small images are enlarged to about this width, in pixels, to be drawn smoothly.
_SHARP = 480


class Detections(NamedTuple):
    """Boxes (R, 4) in pixels, xyxy; classes (R,); scores (R,), or None for ground truth."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None


def detections_grid(
    images: Sequence[np.ndarray],
    columns: dict[str, list[Detections]],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Draw one row for each image and one column for each detector.

    Args:
        images: (H, W, 3) RGB, uint8.
        columns: title -> detections, one for each image.
        class_names: names of the classes, by index.
        path: the picture to write.
    """
    size = (2.9 * len(columns), 2.9 * len(images) + 0.9)
    figure, axes = plt.subplots(len(images), len(columns), figsize=size, squeeze=False)
    for row, image in enumerate(images):
        for axis, (title, found) in zip(axes[row], columns.items()):
            _draw(axis, image, found[row])
            if row == 0:
                axis.set_title(title, fontsize=13)
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=_COLOURS[i % len(_COLOURS)], label=name)
        for i, name in enumerate(class_names)
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=11
    )
    figure.tight_layout(rect=(0, 0.45 / size[1], 1, 1), pad=0.4)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw(axis: Axes, image: np.ndarray, found: Detections) -> None:
    height, width = image.shape[:2]
    factor = max(1, _SHARP // width)
    large = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    axis.imshow(large, extent=(0, width, height, 0))
    axis.set_axis_off()
    for index, (x0, y0, x1, y1) in enumerate(found.boxes):
        colour = _COLOURS[int(found.classes[index]) % len(_COLOURS)]
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2)
        axis.add_patch(box)
        if found.scores is not None:
            label = {"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            text = f"{100 * found.scores[index]:.0f}"
            axis.text(
                x0,
                max(y0, 0.045 * height),  # a label above the image would be cut off
                text,
                fontsize=7,
                color="white",
                va="bottom",
                bbox=label,
                clip_on=True,
            )


class Bar(NamedTuple):
    """One bar: label, mean and standard deviation of AP, mean AP of its equal-time baseline."""

    label: str
    mean: float
    std: float
    equal_time: float | None = None


def bar_chart(panels: dict[str, list[Bar]], path: Path) -> None:
    """Draw one panel of bars for each title; the first bar is the baseline.

    Args:
        panels: title -> bars.
        path: the picture to write.
    """
    widest = max(len(bars) for bars in panels.values())
    size = (max(6.0, 0.95 * widest + 1.5), 4.2 * len(panels))
    figure, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False)
    for axis, (title, bars) in zip(axes[:, 0], panels.items()):
        _draw_bars(axis, bars)
        axis.set_title(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_bars(axis: Axes, bars: list[Bar]) -> None:
    positions = np.arange(len(bars))
    colours = ["#8c8c8c", *["#4c78a8"] * (len(bars) - 1)]
    means, stds = [bar.mean for bar in bars], [bar.std for bar in bars]
    axis.bar(positions, means, yerr=stds, capsize=4, color=colours, width=0.7)
    axis.axhline(bars[0].mean, color="#8c8c8c", linewidth=1, linestyle=":")
    timed = [(x, bar.equal_time) for x, bar in zip(positions, bars) if bar.equal_time is not None]
    if timed:
        xs, values = zip(*timed)
        label = "baseline given the same time"
        axis.scatter(xs, values, marker="_", s=500, color="#e45756", zorder=3, label=label)
        axis.legend(loc="upper left", fontsize=8, frameon=False)
    for x, bar in zip(positions, bars):
        _write_at_base(axis, x, f"{bar.mean:.1f}")
    axis.set_xticks(positions, [bar.label for bar in bars], rotation=30, ha="right", fontsize=9)
    axis.set_ylabel("AP")
    axis.set_ylim(0, 1.18 * max(m + s for m, s in zip(means, stds)) or 1)
    axis.spines[["top", "right"]].set_visible(False)


def _write_at_base(axis: Axes, x: float, text: str) -> None:
    """Write at the foot of a bar, away from its error bar and the other baseline's mark."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    above = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    axis.annotate(text, (x, 0), fontsize=9, bbox=box, **above)


def loglog_chart(panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], path: Path) -> None:
    """Draw one panel of seconds for each quantity, with a dotted line for linear growth.

    Args:
        panels: quantity -> label -> values of the quantity, and seconds.
        path: the picture to write.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.8), squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items()):
        for label, (x, y) in lines.items():
            axis.plot(x, y, marker="o", markersize=4, label=label)
        x, y = next(iter(lines.values()))
        axis.plot(x, y[-1] * x / x[-1], color="#8c8c8c", linestyle=":", label="linear")
        axis.set(xscale="log", yscale="log", xlabel=title, ylabel="seconds")
        axis.set_xticks(x, [f"{v:.3g}" for v in x])
        axis.minorticks_off()
        axis.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


class Line(NamedTuple):
    """A method's curve: minutes of training, mean AP and its standard deviation at each length."""

    label: str
    minutes: list[float]
    means: list[float]
    stds: list[float]


def curve_chart(lines: Sequence[Line], path: Path) -> None:
    """Draw AP over minutes of training; the first line is the baseline.

    Args:
        lines: one for each method.
        path: the picture to write.
    """
    figure, axis = plt.subplots(figsize=(7.0, 4.2))
    for index, line in enumerate(lines):
        style = {"color": "#8c8c8c", "linestyle": "--"} if index == 0 else {}
        axis.errorbar(
            line.minutes,
            line.means,
            yerr=line.stds,
            label=line.label,
            marker="o",
            markersize=4,
            capsize=3,
            **style,
        )
    axis.set(xlabel="minutes of training, teacher included", ylabel="AP")
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
