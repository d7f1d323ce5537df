# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Panels with a map for each feature level, in a row with one colour scale.

Shape shorthand in this file:
    H, W: height and width of a feature level
"""

from collections.abc import Iterable, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator
from torch import Tensor

from .box_panels import outline
from .image_view import ImageView
from .level_maps import Maps
from .style import TRUTH

__all__ = ["MASK_SCALE", "draw_levels", "scale_of"]

# Masks lie between 0 and 1.
MASK_SCALE = Normalize(0, 1)
# Quantiles of the values that the ends of a scale stand for.
LOW, HIGH = 0.01, 0.99


def scale_of(rows: Iterable[Maps]) -> Normalize:
    """One colour scale for all these maps: logarithmic where every value is above 0."""
    values = torch.cat([x.flatten() for maps in rows for x in maps.values()]).double()
    values = values[values.isfinite()]
    if not len(values):
        return Normalize(0, 1)
    low, high = torch.quantile(_thinned(values), torch.tensor([LOW, HIGH]).double()).tolist()
    if low == high:
        high = low + max(abs(low), 1e-6)
    return LogNorm(low, high, clip=True) if low > 0 else Normalize(low, high, clip=True)


def _thinned(values: Tensor) -> Tensor:
    """torch.quantile takes at most 16 million values."""
    return values[:: len(values) // 1_000_000 + 1]


def draw_levels(
    figure: SubFigure,
    axes: Sequence[Axes],
    maps: Maps,
    view: ImageView,
    *,
    title: str,
    scale: Normalize,
    colors: str,
    levels: Sequence[str],
) -> None:
    """One row of a figure, a panel for each level, with the ground truth and a colour bar.

    Args:
        maps: level -> (H, W); a level without a map stays empty.
        levels: the levels of all rows, one for each of ``axes``.
    """
    height, width = view.pixels.shape[:2]
    drawn = None
    for ax, level in zip(axes, levels):
        if level not in maps:
            continue
        ax.set_axis_on()
        ax.set(xticks=[], yticks=[])
        values, stride = maps[level], view.strides[level]
        extent = (0, values.shape[1] * stride, values.shape[0] * stride, 0)
        drawn = ax.imshow(
            values.numpy(), cmap=colors, norm=scale, extent=extent, interpolation="nearest"
        )
        # Without the padding on the right and below.
        ax.set(xlim=(0, width), ylim=(height, 0))
        outline(ax, view.truth.boxes, TRUTH, width=0.8)
        ax.set_title(f"{level}, stride {stride}", fontsize=8)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    if drawn is not None:
        _draw_bar(figure, axes, drawn)


def _draw_bar(figure: SubFigure, axes: Sequence[Axes], drawn: AxesImage) -> None:
    logarithmic = isinstance(drawn.norm, LogNorm)
    ticks = LogLocator(subs=(1, 2, 5)) if logarithmic else None
    bar = figure.colorbar(
        drawn, ax=list(axes), fraction=0.03, pad=0.01, aspect=14, ticks=ticks, format="%g"
    )
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=7)
