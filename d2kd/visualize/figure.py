# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The figure of one image: its rows, their sizes and order.

Shape shorthand in this file:
    H, W: height and width of the figure in pixels
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from .box_panels import draw_found, draw_gate, draw_legend, draw_pairs, draw_regions
from .image_view import ImageView, StudentView
from .level_maps import Maps
from .map_panels import MASK_SCALE, draw_levels, scale_of
from .style import STUDENT, TEACHER, TRUTH

__all__ = ["draw_figure", "to_pixels"]

# Inches.
WIDTH, TITLES, TICKS = 13.0, 0.62, 0.5


class _Row(NamedTuple):
    """One row of panels.

    Attributes:
        panels: how many columns it has.
        draw: fills the part of the figure that it is given.
        more: height beside that of the image and the titles, in inches.
    """

    panels: int
    draw: Callable[[SubFigure], None]
    more: float = 0.0


def draw_figure(view: ImageView) -> Figure:
    """Everything that is known of one image; what its losses do not use is left out."""
    rows = [_detections(view), *_masks(view), *_features(view), *_regions(view)]
    aspect = view.pixels.shape[0] / view.pixels.shape[1]
    heights = [WIDTH * 0.94 / row.panels * aspect + TITLES + row.more for row in rows]
    figure = Figure((WIDTH, sum(heights) + 0.5), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(view.title, fontsize=11, x=0.01, ha="left", weight="bold")
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for row, part in zip(rows, parts):
        row.draw(part)
    return figure


def to_pixels(figure: Figure) -> np.ndarray:
    """(H, W, 3) uint8, RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _detections(view: ImageView) -> _Row:
    panels = [("ground truth", view.truth, TRUTH), ("teacher", view.teacher, TEACHER)]
    panels += [(f"student {x.name}", x.detections, STUDENT) for x in view.students]
    found = [(title, boxes, color) for title, boxes, color in panels if boxes is not None]

    def draw(part: SubFigure) -> None:
        for ax, (title, boxes, color) in zip(_axes(part, 4), found):
            ax.set_axis_on()
            draw_found(ax, view.pixels, boxes, title, view.classes, color)

    return _Row(4, draw)


def _masks(view: ImageView) -> list[_Row]:
    """Those of the first student; of others only what differs."""
    rows: list[_Row] = []
    seen: dict[str, Maps] = {}
    for student in view.students:
        for name, maps in student.masks.items():
            if name in seen and all(maps[x].equal(seen[name][x]) for x in maps):
                continue
            whose = f", student {student.name}" if name in seen else ""
            seen[name] = maps
            title = f"mask: {name}{whose}"
            rows.append(_levels(view, maps, title, MASK_SCALE, "inferno"))
    return rows


def _features(view: ImageView) -> list[_Row]:
    """The energies on one scale, then the distances on one."""
    students = [x for x in view.students if x.features.student]
    if not students:
        return []
    theirs = students[0].features.teacher
    energy = scale_of([theirs, *(x.features.student for x in students)])
    distance = scale_of([x.features.distance for x in students])
    what = "feature energy (mean of the squared channels)"
    rows = [_levels(view, theirs, f"teacher: {what}", energy, "viridis")]
    for x in students:
        title = f"student {x.name}: {what}{', after the adapter' * x.features.adapted}"
        rows.append(_levels(view, x.features.student, title, energy, "viridis"))
    for x in students:
        title = f'student {x.name}: distance "{x.features.name}" to the teacher\'s features'
        rows.append(_levels(view, x.features.distance, title, distance, "magma"))
    return rows


def _levels(view: ImageView, maps: Maps, title: str, scale: Normalize, colors: str) -> _Row:
    levels = _compared_levels(view)

    def draw(part: SubFigure) -> None:
        axes = _axes(part, max(len(levels), 4))
        draw_levels(part, axes, maps, view, title=title, scale=scale, colors=colors, levels=levels)

    return _Row(max(len(levels), 4), draw)


def _compared_levels(view: ImageView) -> list[str]:
    """Those that a row has a map of; one column each, in all rows."""
    used = {level for x in view.students for level in x.features.student}
    used |= {level for x in view.students for maps in x.masks.values() for level in maps}
    return [level for level in view.strides if level in used]


def _regions(view: ImageView) -> list[_Row]:
    return [_region_row(view, x) for x in view.students if x.regions is not None]


def _region_row(view: ImageView, student: StudentView) -> _Row:
    regions = student.regions
    assert regions is not None

    def draw(part: SubFigure) -> None:
        part.suptitle(f"student {student.name}: regions", fontsize=10, x=0.01, ha="left")
        draw_legend(part, regions)
        axes = _axes(part, 3)
        axes[0].set_axis_on()
        draw_regions(axes[0], view.pixels, regions)
        if regions.teacher is not None and regions.student is not None:
            axes[1].set_axis_on()
            draw_pairs(axes[1], view.pixels, regions)
            axes[2].set_axis_on()
            draw_gate(axes[2], regions)

    return _Row(3, draw, TICKS)


def _axes(part: SubFigure, count: int) -> Sequence:
    """So many panels in a row, which show nothing until they are switched on."""
    axes = part.subplots(1, count, squeeze=False)[0]
    for ax in axes:
        ax.set_axis_off()
    return axes
