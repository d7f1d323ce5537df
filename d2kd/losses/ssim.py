"""SSIM between feature maps: luminance, contrast and structure in a sliding window.

Shape shorthand in this file:
    N: images in the batch; C, H, W: channels, height and width of a feature level
"""

import math
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import full_precision
from .distances import register_distance

__all__ = ["SCALINGS", "ssim", "ssim_index"]

# What shares one minimum and one maximum -> the first of the dimensions (N, C, H, W) it spans.
SCALINGS = {"image_channel": 2, "image": 1, "level": 0, "none": None}


@register_distance()
def ssim(
    student: Tensor,
    teacher: Tensor,
    *,
    scaling: str = "image_channel",
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    range: float = 1.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """Structural dissimilarity ``(1 - SSIM) / 2``.

    de Rijk et al., arXiv 2211.13133, eq. 3-6. Both maps are min-max scaled to [0, 1] first, and
    gradients flow through the student's scaling. The paper does not publish over which axes: the
    default is a choice. A constant map is scaled to 0, so that a level of a single cell has no
    "image_channel" loss.

    Args:
        student, teacher: (N, C, H, W); below float32 they are computed in float32.
        scaling: what shares a minimum and a maximum: "image_channel", "image", "level", or
            "none" (then set ``range`` to the span of the features).
        window, sigma: size (odd) and standard deviation of the Gaussian window, in cells.
        k1, k2, range: of the constants C1 = (k1 range)^2 and C2 = (k2 range)^2.
        alpha, beta, gamma: exponents of luminance, contrast and structure, see
            :func:`ssim_index`.

    Returns:
        (N, H, W), mean over channels.

    Raises:
        ValueError: for an unknown scaling, an even window, or if all exponents are 0.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of {sorted(SCALINGS)}, not {scaling!r}")
    index = ssim_index(
        _min_max(full_precision(student), SCALINGS[scaling]),
        _min_max(full_precision(teacher.detach()), SCALINGS[scaling]),
        window=window,
        sigma=sigma,
        c1=(k1 * range) ** 2,
        c2=(k2 * range) ** 2,
        exponents=(alpha, beta, gamma),
    )
    return (1 - index.sum(dim=1) / index.shape[1]) / 2


def ssim_index(
    x: Tensor,
    y: Tensor,
    *,
    window: int,
    sigma: float,
    c1: float,
    c2: float,
    exponents: Tuple[float, float, float],
) -> Tensor:
    """SSIM at each location and channel: ``luminance^a * contrast^b * structure^g``.

    Wang et al., IEEE TIP 13(4), 2004, eq. 6, 9, 10 with C3 = C2 / 2. Windows that reach over the
    border are cut off there and their weights sum to 1 again: the result covers the whole map,
    equals the "valid" convention further than half a window from the border, and a map smaller
    than the window is no special case.

    Args:
        x, y: (N, C, H, W) float32 or float64.
        window, sigma: size (odd) and standard deviation of the Gaussian window, in cells.
        c1, c2: what keeps luminance, and contrast and structure, finite on flat maps.
        exponents: of luminance, contrast and structure. Under one that is neither 0 nor 1 a
            factor below 1e-6 counts as 1e-6: structure may be negative.

    Returns:
        (N, C, H, W).
    """
    if window % 2 == 0:
        raise ValueError(f"the SSIM window must be odd to have a centre, not {window}")
    if not any(exponents):
        raise ValueError("SSIM needs an exponent alpha, beta or gamma that is not 0")
    smooth = _Window(x, window, sigma)
    if exponents == (1, 1, 1):
        return _closed_form(x, y, smooth, c1, c2)
    return _product_form(x, y, smooth, c1, c2, exponents)


def _closed_form(x: Tensor, y: Tensor, smooth: "_Window", c1: float, c2: float) -> Tensor:
    """All exponents 1: contrast times structure has no root and needs no single variance."""
    # Maps cost time, not operations: constants ride along in fused multiply-adds, also under
    # the window, whose weights sum to 1.
    c1, c12 = x.new_tensor(c1), x.new_tensor(c1 + c2)
    mu_x, mu_y = smooth(x), smooth(y)
    means = torch.addcmul(c1, mu_x, mu_y, value=2)
    squares = torch.addcmul(torch.addcmul(c1, mu_y, mu_y), mu_x, mu_x)
    covariance = smooth(torch.addcmul(c12, x, y, value=2)) - means
    variance = smooth(torch.addcmul(torch.addcmul(c12, y, y), x, x)) - squares
    return (means * covariance) / (squares * variance.clamp(min=c2))


def _product_form(
    x: Tensor,
    y: Tensor,
    smooth: "_Window",
    c1: float,
    c2: float,
    exponents: Tuple[float, float, float],
) -> Tensor:
    """Luminance, contrast and structure apart, each with its exponent."""
    mu_x, mu_y = smooth(x), smooth(y)
    covariance = smooth(x * y) - mu_x * mu_y
    variance_x = (smooth(x * x) - mu_x**2).clamp(min=0)
    variance_y = (smooth(y * y) - mu_y**2).clamp(min=0)
    # The root's slope at 0 is infinite; this floor moves contrast by 0.2 % at most.
    deviations = (variance_x * variance_y + (1e-3 * c2) ** 2).sqrt()
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    contrast = (2 * deviations + c2) / (variance_x + variance_y + c2)
    structure = (covariance + c2 / 2) / (deviations + c2 / 2)
    factors = zip((luminance, contrast, structure), exponents)
    return math.prod(_power(factor, exponent) for factor, exponent in factors if exponent)


class _Window:
    """Gaussian means over windows that are cut off at the border of maps like ``like``.

    Each axis is a product with a banded matrix. That multiplies by many zeros, yet it is faster
    than padded depthwise convolutions on a CPU, and its rows carry the border's normalisation.
    """

    def __init__(self, like: Tensor, window: int, sigma: float):
        self.rows = self._band(like, like.shape[-2], window, sigma)
        self.columns = self._band(like, like.shape[-1], window, sigma)

    @staticmethod
    def _band(like: Tensor, length: int, window: int, sigma: float) -> Tensor:
        cells = torch.arange(length, device=like.device, dtype=like.dtype)
        offset = cells[:, None] - cells
        weights = torch.exp(-((offset / sigma) ** 2) / 2) * (offset.abs() <= window // 2)
        return weights / weights.sum(dim=1, keepdim=True)

    def __call__(self, x: Tensor) -> Tensor:
        return self.rows @ F.linear(x, self.columns)


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` with finite values and slopes where the base is 0 or negative."""
    return base if exponent == 1 else base.clamp(min=1e-6) ** exponent


def _min_max(x: Tensor, first_dim: Optional[int], eps: float = 1e-6) -> Tensor:
    """Scales x to [0, 1] over its dimensions from ``first_dim`` on; where constant, to 0."""
    if first_dim is None:
        return x
    flat = x.flatten(first_dim)
    # Two gathered values: the backward pass of amin and amax would compare whole maps.
    indices = torch.stack((flat.detach().argmin(dim=-1), flat.detach().argmax(dim=-1)), dim=-1)
    low, high = flat.gather(-1, indices).split(1, dim=-1)
    span = high - low
    # A constant map divided by a tiny span would have enormous gradients.
    return ((flat - low) / torch.where(span > eps, span, 1.0)).view_as(x)
