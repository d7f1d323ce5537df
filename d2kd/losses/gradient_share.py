# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How strongly the losses pull at the student's features: norms and directions of gradients.

A loss's value says little about its pull: a cross entropy with soft targets has the teacher's
entropy as its floor. What acts is the gradient. All losses act on the maps of the student's
backbone, which are the input of every head, so their gradients are compared there.

Shape shorthand in this file:
    D: distillation losses
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["LossGradient", "gradient_products", "loss_gradients"]


class LossGradient(NamedTuple):
    """The gradient of one distillation loss, beside that of the summed detection losses.

    Attributes:
        ratio: its norm over theirs, a float32 scalar; infinite or NaN where theirs is 0.
        cosine: of the angle between the two; NaN where one of them is 0.
    """

    ratio: Tensor
    cosine: Tensor


def gradient_products(
    detection: Tensor, distillation: Mapping[str, Tensor], features: Sequence[Tensor]
) -> Tensor:
    """Squared norms and dot products of the losses' gradients at the features.

    Over several processes, those of the joined batch: the features of all processes are one vector,
    and the factor that averages the losses is left out, for it is common to all.

    Args:
        detection: the sum of the detection losses, a scalar. The graph stays.
        distillation: name -> loss, a scalar.
        features: tensors of any shape that the losses depend on; one that a loss does not reach
            counts as 0.

    Returns:
        (1 + 2 D,) float32: the squared norm of the detection losses' gradient, those of the
        distillation losses, and the product of each of these with the first.
    """
    theirs = _gradient(detection, features)
    ours = [_gradient(loss, features) for loss in distillation.values()]
    zero = detection.new_zeros((), dtype=torch.float32)
    squares = [_product(gradient, gradient, zero) for gradient in (theirs, *ours)]
    products = torch.stack([*squares, *(_product(gradient, theirs, zero) for gradient in ours)])
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(products)
    return products


def _gradient(loss: Tensor, features: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Of each feature tensor; None where the loss does not reach it."""
    return torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)


def _product(
    first: tuple[Tensor | None, ...], second: tuple[Tensor | None, ...], zero: Tensor
) -> Tensor:
    """The dot product of two gradients over all features, in float32."""
    both = ((a, b) for a, b in zip(first, second) if a is not None and b is not None)
    return sum((a.float().flatten().dot(b.float().flatten()) for a, b in both), zero)


def loss_gradients(products: Tensor, names: Sequence[str]) -> dict[str, LossGradient]:
    """Ratio and cosine of each loss, from what ``gradient_products`` returned.

    Args:
        products: (1 + 2 D,).
        names: of the D losses, in the order in which they were given.
    """
    count = len(names)
    norms = products[: 1 + count].sqrt()
    cosines = products[1 + count :] / (norms[0] * norms[1:])
    ratios = norms[1:] / norms[0]
    return {name: LossGradient(*pair) for name, *pair in zip(names, ratios, cosines)}
