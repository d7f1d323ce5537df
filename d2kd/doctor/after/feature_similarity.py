# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Linear CKA: how much of a feature map is a linear function of another, whatever its channels.

Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section 3:
``||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F)`` of centred features. 1 for maps that are equal up to a
rotation and a scale of the channels, so no adapter is needed, and an untrained one cannot mislead.

Shape shorthand:
    N: images; C, D: channels of student and teacher; H, W: size of the level; M: locations
"""

import torch
from torch import Tensor

__all__ = ["FeatureSimilarity"]


class FeatureSimilarity:
    """Linear CKA of one level over all locations of all batches; only sums are kept.

    Attributes:
        locations: M so far, those that count.
    """

    def __init__(self) -> None:
        self.locations = 0
        self._sums: list[Tensor] = []

    def add(self, student: Tensor, teacher: Tensor, mask: Tensor) -> None:
        """Count a batch.

        Args:
            student, teacher: (N, C, H, W) and (N, D, H, W).
            mask: (N, H, W) how much each location counts; 0 leaves it out.
        """
        x, y = (m.detach().double().transpose(0, 1).flatten(1).T for m in (student, teacher))
        weights = mask.detach().double().flatten()
        a, b = x * weights[:, None], y * weights[:, None]
        sums = [weights.sum(), a.sum(0), b.sum(0), a.T @ x, b.T @ y, b.T @ x]
        self._sums = [old + new for old, new in zip(self._sums, sums)] if self._sums else sums
        self.locations += int((weights > 0).sum())

    @property
    def value(self) -> float:
        """CKA from 0 to 1; NaN if a map is constant.

        With fewer locations than a few times the channels, any two maps look alike.
        """
        whole, x, y, xx, yy, yx = self._sums
        xx, yy, yx = (
            product - torch.outer(a, b) / whole
            for product, a, b in ((xx, x, x), (yy, y, y), (yx, y, x))
        )
        return float(yx.square().sum() / (xx.norm() * yy.norm()))
