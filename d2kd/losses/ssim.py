"""SSIM between feature maps: luminance, contrast and structure in a sliding window.

Shape shorthand in this file:
    N: images in the batch; C, H, W: channels, height and width of a feature level
    M: moments, stacked along the batch
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .distances import register_distance

__all__ = ["SCALING_AXES", "ssim", "ssim_index"]

# Dimensions of (N, C, H, W) that share one minimum and one maximum.
SCALING_AXES = {"image_channel": (2, 3), "image": (1, 2, 3), "level": (0, 1, 2, 3), "none": ()}


@register_distance()
def ssim(student: Tensor, teacher: Tensor, *, scaling: str = "image_channel", **index) -> Tensor:
    """Structural dissimilarity ``(1 - SSIM) / 2``.

    de Rijk et al., arXiv 2211.13133, eq. 3-6. Both maps are min-max scaled to [0, 1] first;
    gradients flow through the student's scaling. The paper does not publish over which axes.
    A constant map is scaled to 0, so a level of one cell has no "image_channel" loss.

    Args:
        student, teacher: (N, C, H, W); below float32 they are computed in float32.
        scaling: what shares a minimum and a maximum: "image_channel", "image", "level" or
            "none" (then set ``dynamic_range``).
        **index: parameters of :func:`ssim_index`.

    Returns:
        (N, H, W), mean over channels, between 0 and 1.

    Raises:
        ValueError: if ``scaling`` is not one of those.
    """
    if scaling not in SCALING_AXES:
        raise ValueError(f"scaling must be one of {sorted(SCALING_AXES)}, not {scaling!r}")
    student, teacher = (
        _min_max(x.to(torch.promote_types(x.dtype, torch.float32)), SCALING_AXES[scaling])
        for x in (student, teacher.detach())
    )
    return (1 - ssim_index(student, teacher, **index).mean(dim=1)) / 2


def ssim_index(
    x: Tensor,
    y: Tensor,
    *,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    dynamic_range: float = 1.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """SSIM of two maps at each location and channel: ``luminance^a contrast^b structure^g``.

    Wang et al., IEEE TIP 13(4), 2004. Windows that reach over the border are cut off there and
    their weights made to sum to 1 again: the output covers the whole map, cells further than
    half a window from the border have the usual ("valid") values, and a map smaller than the
    window is no special case. A base below 1e-6 is raised to it under exponents other than 0, 1.

    Args:
        x, y: (N, C, H, W) float32 or float64.
        window, sigma: size and standard deviation of the Gaussian window, in cells.
        k1, k2: the constants are C1 = (k1 D)^2, C2 = (k2 D)^2, C3 = C2 / 2.
        dynamic_range: D, the span of the values.
        alpha, beta, gamma: exponents of luminance, contrast and structure.

    Returns:
        (N, C, H, W), at most 1.

    Raises:
        ValueError: if the window is even, which has no centre.
    """
    if window % 2 == 0:
        raise ValueError(f"the SSIM window must be odd, not {window}")
    c1, c2 = (k1 * dynamic_range) ** 2, (k2 * dynamic_range) ** 2
    mu_x, mu_y, xx, yy, xy = _smooth(torch.stack((x, y, x * x, y * y, x * y)), window, sigma)
    mu_xy = mu_x * mu_y
    covariance = xy - mu_xy
    variances = (xx - mu_x**2).clamp(min=0), (yy - mu_y**2).clamp(min=0)
    luminance = (2 * mu_xy + c1) / (mu_x**2 + mu_y**2 + c1)
    if beta == gamma == 1:
        # Contrast times structure: the product has no square root.
        similarity = (2 * covariance + c2) / (variances[0] + variances[1] + c2)
    else:
        similarity = _contrast_structure(variances, covariance, c2, beta, gamma)
    return _power(luminance, alpha) * similarity


def _contrast_structure(
    variances: Tuple[Tensor, Tensor], covariance: Tensor, c2: float, beta: float, gamma: float
) -> Tensor:
    """``contrast^beta structure^gamma``, needed apart for exponents other than 1."""
    # The root's slope at 0 is infinite; a floor of 0.001 C2 moves contrast by 0.2 % at most.
    deviations = (variances[0] * variances[1] + (1e-3 * c2) ** 2).sqrt()
    contrast = (2 * deviations + c2) / (variances[0] + variances[1] + c2)
    structure = (covariance + c2 / 2) / (deviations + c2 / 2)
    return _power(contrast, beta) * _power(structure, gamma)


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` with finite values and slopes for bases that are 0 or negative."""
    if exponent == 1:
        return base
    return base.clamp(min=1e-6) ** exponent if exponent else torch.ones_like(base)


def _smooth(moments: Tensor, window: int, sigma: float) -> Tensor:
    """Gaussian means of (M, N, C, H, W) over windows that are cut off at the border."""
    channels, height, width = moments.shape[-3:]
    offsets = torch.arange(window, device=moments.device, dtype=moments.dtype) - (window - 1) / 2
    weights = torch.exp(-((offsets / sigma) ** 2) / 2)
    weights = weights / weights.sum()
    pad = window // 2

    def mass(length: int) -> Tensor:
        return F.conv1d(moments.new_ones(1, 1, length), weights.view(1, 1, -1), padding=pad)

    x = moments.flatten(0, 1)
    rows = weights.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
    x = F.conv2d(x, rows, padding=(pad, 0), groups=channels)
    x = F.conv2d(x, rows.transpose(2, 3), padding=(0, pad), groups=channels)
    return (x / (mass(height).view(-1, 1) * mass(width).view(1, -1))).view(moments.shape)


def _min_max(x: Tensor, axes: Tuple[int, ...], eps: float = 1e-6) -> Tensor:
    """Scales x to [0, 1] over ``axes``; where it is constant there, to 0."""
    if not axes:
        return x
    low, high = x.amin(dim=axes, keepdim=True), x.amax(dim=axes, keepdim=True)
    span = high - low
    # Dividing a constant map by a tiny span would give it enormous gradients.
    return (x - low) / torch.where(span > eps, span, torch.ones_like(span))
