# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""SSIM between feature maps: luminance, contrast and structure in a sliding window.

Shape shorthand in this file:
    N: images in the batch; C, H, W: channels, height and width of a feature level
"""

import math

import torch
from torch import Tensor

from ..distances import DISTANCE_REGISTRY
from ..helpers import full_precision
from .fused import ClosedSSIM
from .window import GaussianWindow

__all__ = ["SCALINGS", "ssim"]

# What shares one minimum and one maximum -> the first of the dimensions (N, C, H, W) it spans.
SCALINGS = {"image_channel": 2, "image": 1, "level": 0, "none": None}


@DISTANCE_REGISTRY.register()
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
    "image_channel" loss. Windows that reach over the border are cut off there and their weights
    sum to 1 again: the result covers the whole map, equals the "valid" convention further than
    half a window from the border, and a map smaller than the window is no special case.

    Args:
        student, teacher: (N, C, H, W); below float32 they are computed in float32.
        scaling: what shares a minimum and a maximum: "image_channel", "image", "level", or
            "none" (then set ``range`` to the span of the features).
        window, sigma: size (odd) and standard deviation of the Gaussian window, in cells.
        k1, k2, range: of the constants C1 = (k1 range)^2 and C2 = (k2 range)^2.
        alpha, beta, gamma: exponents of luminance, contrast and structure. With all of them 1,
            as in the paper, SSIM has a closed form: ``ClosedSSIM`` computes it in half of the time
            of the general form. Other exponents, as in an ablation, need the general form.

    Returns:
        (N, H, W), mean over channels.

    Raises:
        ValueError: for an unknown scaling, an even window, or if all exponents are 0.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of {sorted(SCALINGS)}, not {scaling!r}")
    if window % 2 == 0:
        raise ValueError(f"the SSIM window must be odd to have a centre, not {window}")
    exponents, first_dim = (alpha, beta, gamma), SCALINGS[scaling]
    if not any(exponents):
        raise ValueError("SSIM needs an exponent alpha, beta or gamma that is not 0")
    student, teacher = full_precision(student), full_precision(teacher.detach())
    c1, c2 = (k1 * range) ** 2, (k2 * range) ** 2
    if exponents == (1, 1, 1):
        whole = ClosedSSIM.apply(student, teacher, first_dim, window, sigma, c1, c2)
    else:
        scaled = _min_max(student, first_dim), _min_max(teacher, first_dim)
        smooth = GaussianWindow(student, window, sigma)
        whole = _product_form(*scaled, smooth, c1, c2, exponents).sum(dim=1)
    return (1 - whole / student.shape[1]) / 2


def _product_form(
    x: Tensor,
    y: Tensor,
    smooth: GaussianWindow,
    c1: float,
    c2: float,
    exponents: tuple[float, float, float],
) -> Tensor:
    """Luminance, contrast and structure separately, each with its exponent.

    Wang et al., IEEE TIP 13(4), 2004, eq. 6, 9, 10 with C3 = C2 / 2. Under an exponent that is
    neither 0 nor 1 a factor below 1e-6 counts as 1e-6: structure may be negative.

    Args:
        x, y: (N, C, H, W) float32 or float64, scaled.
        smooth: window means.
        c1, c2: what keeps luminance, and contrast and structure, finite on flat maps.
        exponents: of luminance, contrast and structure.

    Returns:
        (N, C, H, W).
    """
    mu_x, mu_y = smooth(x), smooth(y)
    covariance = smooth(x * y) - mu_x * mu_y
    variance_x = (smooth(x * x) - mu_x**2).clamp(min=0)
    variance_y = (smooth(y * y) - mu_y**2).clamp(min=0)
    # The root's slope at 0 is infinite; this lower limit changes contrast by 0.2 % at most.
    deviations = (variance_x * variance_y + (1e-3 * c2) ** 2).sqrt()
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    contrast = (2 * deviations + c2) / (variance_x + variance_y + c2)
    structure = (covariance + c2 / 2) / (deviations + c2 / 2)
    factors = zip((luminance, contrast, structure), exponents)
    return math.prod(_power(factor, exponent) for factor, exponent in factors if exponent)


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` with finite values and slopes where the base is 0 or negative."""
    return base if exponent == 1 else base.clamp(min=1e-6) ** exponent


def _min_max(x: Tensor, first_dim: int | None, eps: float = 1e-6) -> Tensor:
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
