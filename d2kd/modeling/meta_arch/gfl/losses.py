# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The two generalized focal losses and the expectation that turns edge distributions into boxes.

Paper: Generalized Focal Loss (Li et al., NeurIPS 2020, arXiv 2006.04388), abbreviated GFL.

Shape shorthand in this file:
    R: locations or regions of all images together; K: foreground classes
    E: bins per box edge, the distances 0, 1, ..., E - 1 in strides
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ....losses.helpers import full_precision

__all__ = ["distribution_focal_loss", "expected_distance", "quality_focal_loss"]

# Strides. Keeps a clamped distance inside the last interval [E - 2, E - 1), as both releases do.
_LAST_BIN_MARGIN = 0.1


def expected_distance(bins: Tensor) -> Tensor:
    """The mean of each box edge's distribution: GFL's integral, equation 5.

    Args:
        bins: (..., E) logits, any floating type.

    Returns:
        (...) float32 or more precise, in strides, from 0 to E - 1.
    """
    # A sum of products, not a matmul: under autocast a matmul would round distances to bfloat16.
    probabilities = full_precision(bins).softmax(dim=-1)
    return (probabilities * torch.arange(bins.shape[-1], device=bins.device)).sum(dim=-1)


def quality_focal_loss(logits: Tensor, targets: Tensor, beta: float = 2.0) -> Tensor:
    """Cross entropy against a continuous target, scaled by the distance to it: GFL equation 3.

    Args:
        logits: (R, K), one independent sigmoid for each class.
        targets: (R, K) from 0 to 1: the quality (IoU) at a positive's class, 0 elsewhere.
        beta: the exponent of the distance; 2 in the paper.

    Returns:
        (R, K), not reduced.
    """
    distance = (targets - logits.sigmoid()).abs()
    return distance**beta * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def distribution_focal_loss(bins: Tensor, distances: Tensor) -> Tensor:
    """Cross entropy on the two bins around each distance, GFL equation 6.

    Args:
        bins: (..., E) logits.
        distances: (...) in strides; clamped to what E bins can say, as in the released code.

    Returns:
        (...), not reduced.
    """
    distances = distances.clamp(min=0, max=bins.shape[-1] - 1 - _LAST_BIN_MARGIN)
    below = distances.floor()
    weight_above = distances - below
    index = torch.stack([below, below + 1], dim=-1).long()
    cost_below, cost_above = (-bins.log_softmax(dim=-1)).gather(-1, index).unbind(dim=-1)
    return (1 - weight_above) * cost_below + weight_above * cost_above
