# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Panels with boxes: detections on the image, and the regions with what passes the gate.

Shape shorthand in this file:
    H, W: height and width of the image; B: boxes; R: regions
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from .detections import FoundBoxes
from .region_view import RegionView
from .style import ACCEPTED, OUTLINE, REFUSED, SMALL, STUDENT, TEACHER, TRUTH

__all__ = [
    "SCORE",
    "draw_found",
    "draw_gate",
    "draw_legend",
    "draw_pairs",
    "draw_regions",
    "outline",
    "pairs_of",
]

# Detections below this are noise in a picture.
SCORE = 0.3
# More boxes than these hide each other.
MOST_FOUND, MOST_PAIRS = 15, 6


def draw_found(
    ax: Axes, pixels: np.ndarray, found: FoundBoxes, title: str, classes: Sequence[str], color: str
) -> None:
    """Boxes with their classes and scores on the image (H, W, 3)."""
    _draw_image(ax, pixels)
    boxes, labels, scores = found.boxes, found.classes.tolist(), found.scores
    if scores is None:
        texts = [_name(classes, x) for x in labels]
        title += f" ({len(texts)})"
    else:
        best = scores.argsort(descending=True)
        best = best[scores[best] >= SCORE]
        title += f" ({len(best)} of score ≥ {SCORE:g})"
        best = best[:MOST_FOUND]
        boxes = boxes[best]
        texts = [f"{_name(classes, labels[i])} {scores[i]:.2f}" for i in best.tolist()]
    outline(ax, boxes, color, width=1.3)
    for box, text in zip(boxes.tolist(), texts):
        _write(ax, box, text, color)
    ax.set_title(title, fontsize=9)


def draw_regions(ax: Axes, pixels: np.ndarray, view: RegionView) -> None:
    """Every region with its centre, in the colour of what the gate says."""
    _draw_image(ax, pixels)
    passes = view.accepted
    if passes is None:
        passes = torch.ones(len(view.regions), dtype=torch.bool)
    _outline_truth(ax, view)
    for chosen, color in ((~passes, REFUSED), (passes, ACCEPTED)):
        boxes = view.regions[chosen]
        outline(ax, boxes, color, width=0.7, alpha=max(0.2, min(0.8, 15 / max(len(boxes), 1))))
        x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).unbind(1)
        ax.scatter(x, y, s=9, color=color, edgecolors="black", linewidths=0.4, zorder=3)
    ax.set_title(f"regions (positives): {len(view.regions)}{_verdict(view)}", fontsize=9)


def _verdict(view: RegionView) -> str:
    if view.accepted is None:
        return ""
    return f", {int(view.accepted.sum())} pass the gate"


def pairs_of(view: RegionView) -> list[int]:
    """For each object the region where the gate's two IoUs differ most; the clearest first."""
    if view.teacher is None or view.student is None or view.rival is None:
        return []
    gap = (view.iou(view.teacher) - view.iou(view.rival)).abs().nan_to_num()
    best: dict[tuple[float, ...], int] = {}
    for row in gap.argsort(descending=True).tolist():
        best.setdefault(tuple(view.truth[row].tolist()), row)
    return list(best.values())[:MOST_PAIRS]


def draw_pairs(ax: Axes, pixels: np.ndarray, view: RegionView) -> None:
    """The teacher's and the student's box on one region of each object, with their IoUs."""
    _draw_image(ax, pixels)
    rows = pairs_of(view)
    _outline_truth(ax, view)
    if view.teacher is None or view.student is None or view.rival is None:
        return
    outline(ax, view.teacher[rows], TEACHER, width=1.3)
    outline(ax, view.student[rows], STUDENT, width=1.3)
    ious = zip(view.iou(view.teacher).tolist(), view.iou(view.rival).tolist())
    compared = list(ious)
    for row in rows:
        theirs, ours = compared[row]
        text = _compare(view, row, theirs, ours)
        _write(ax, view.truth[row].tolist(), text, _color(view, row), above=False)
    ax.set_title("the region of each object where they differ most: IoU", fontsize=9)


def _compare(view: RegionView, row: int, theirs: float, ours: float) -> str:
    rival = "region" if view.gate == "proposal" else "S"
    if view.accepted is None:
        return f"T {theirs:.2f}, {rival} {ours:.2f}"
    return f"T {theirs:.2f} {'>' if view.accepted[row] else '≤'} {rival} {ours:.2f}"


def _color(view: RegionView, row: int) -> str:
    if view.accepted is None:
        return TRUTH
    return ACCEPTED if view.accepted[row] else REFUSED


def draw_gate(ax: Axes, view: RegionView) -> None:
    """Each region by the IoU of both boxes with the ground truth; the gate is the diagonal."""
    rival = "region" if view.gate == "proposal" else "student's box"
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xlabel(f"IoU of the {rival}", fontsize=8)
    ax.set_ylabel("IoU of the teacher's box", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    if view.teacher is None or view.rival is None:
        return
    x, y = view.iou(view.rival), view.iou(view.teacher)
    if view.accepted is None:
        ax.scatter(x, y, s=12, color=ACCEPTED, edgecolors="black", linewidths=0.3)
        ax.set_title("every region counts: no gate", fontsize=9)
        return
    for name, chosen, color in (
        ("passes", view.accepted, ACCEPTED),
        ("refused", ~view.accepted, REFUSED),
    ):
        label = f"{name}: {int(chosen.sum())}"
        ax.scatter(
            x[chosen], y[chosen], s=12, color=color, edgecolors="black", linewidths=0.3, label=label
        )
    ax.legend(fontsize=SMALL, loc="lower right")
    ax.set_title(f'gate "{view.gate}"', fontsize=9)


def outline(ax: Axes, boxes: Tensor, color: str, width: float, alpha: float = 1.0) -> None:
    """Boxes (B, 4) in pixels, with a dark rim where they are opaque."""
    for x0, y0, x1, y1 in boxes.tolist():
        patch = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=width)
        patch.set_alpha(alpha)
        if alpha == 1.0 and width > 1:
            patch.set_path_effects(OUTLINE)
        ax.add_patch(patch)


def _outline_truth(ax: Axes, view: RegionView) -> None:
    outline(ax, view.truth.unique(dim=0), TRUTH, width=1.6)


def _draw_image(ax: Axes, pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    ax.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest")
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def _write(ax: Axes, box: Sequence[float], text: str, color: str, above: bool = True) -> None:
    """Text at a box (x0, y0, x1, y1), over it or under it, inside of the image."""
    (_, width), (height, _) = ax.get_xlim(), ax.get_ylim()
    left = box[0] < 0.7 * width
    x = max(box[0], 0) if left else min(box[2], width)
    y = min(max(box[1 if above else 3], 0.06 * height), 0.94 * height)
    ax.text(
        *(x, y, text),
        fontsize=SMALL,
        color=color,
        bbox={"facecolor": "black", "alpha": 0.7, "linewidth": 0, "pad": 0.8},
        ha="left" if left else "right",
        va="bottom" if above else "top",
        clip_on=True,
    )


def draw_legend(part: SubFigure, view: RegionView) -> None:
    """What the colours of a row of regions mean, above it."""
    entries = [("ground truth", TRUTH)]
    if view.accepted is not None:
        entries += [("passes the gate", ACCEPTED), ("refused", REFUSED)]
    if view.teacher is not None and view.student is not None:
        entries += [("teacher's box (T)", TEACHER), ("student's box (S)", STUDENT)]
    lines = [Line2D([], [], color=color, label=name) for name, color in entries]
    part.legend(
        handles=lines,
        fontsize=SMALL,
        loc="upper right",
        ncols=len(lines),
        facecolor="0.35",
        labelcolor="white",
    )


def _name(classes: Sequence[str], index: int) -> str:
    return classes[index] if index < len(classes) else str(index)
