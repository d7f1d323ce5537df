# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The sliding Gaussian window of SSIM.

Shape shorthand in this file:
    N: images in the batch; C, H, W: channels, height and width of a feature level
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["GaussianWindow"]

# From this width on, treating a map's lines as channels is faster than treating maps as channels.
_WIDE = 64


class GaussianWindow:
    """Gaussian means over windows that are cut off at the border of maps like ``like``."""

    def __init__(self, like: Tensor, window: int, sigma: float):
        """
        Args:
            like: (N, C, H, W).
            window, sigma: size (odd) and standard deviation in cells.
        """
        cells = torch.arange(window, device=like.device, dtype=like.dtype) - window // 2
        self.weights = torch.exp(-((cells / sigma) ** 2) / 2)
        # (H, W), one over the weights that lie inside the map: they sum to 1 again.
        along = [self._inside(like.shape[dim]) for dim in (-2, -1)]
        self.norm = 1 / (along[0][:, None] * along[1])

    def _inside(self, length: int) -> Tensor:
        ones = self.weights.new_ones(1, 1, length)
        return F.conv1d(ones, self.weights.view(1, 1, -1), padding="same").flatten()

    def sums(self, x: Tensor) -> Tensor:
        """Weighted sums of (N, C, H, W) in the windows, which is also its own gradient."""
        if x.shape[-1] < _WIDE:
            return self._sums_of_maps(x.flatten(0, 1)[None]).view_as(x)
        return self._sums_of_lines(x.flatten(0, 1)).view_as(x)

    def _sums_of_maps(self, x: Tensor) -> Tensor:
        """As ``sums``, of (1, C, H, W): a map is a channel."""
        channels, half = x.shape[1], len(self.weights) // 2
        weights = self.weights.expand(channels, 1, -1)
        x = F.conv2d(x, weights[:, :, :, None], padding=(half, 0), groups=channels)
        return F.conv2d(x, weights[:, :, None, :], padding=(0, half), groups=channels)

    def _sums_of_lines(self, x: Tensor) -> Tensor:
        """As ``sums``, of (N, H, W): along H columns are channels (channels_last), along W rows."""
        maps, height, width = x.shape
        rows, half = maps * height, len(self.weights) // 2
        weights = self.weights.expand(width, 1, 1, -1).mT
        x = x.view(maps, height, 1, width).permute(0, 3, 1, 2)
        x = F.conv2d(x, weights, padding=(half, 0), groups=width)
        x = x.permute(0, 2, 3, 1).reshape(1, rows, width)
        return F.conv1d(x, self.weights.expand(rows, 1, -1), padding=half, groups=rows)

    def __call__(self, x: Tensor) -> Tensor:
        """Weighted means of (N, C, H, W)."""
        return self.sums(x) * self.norm
