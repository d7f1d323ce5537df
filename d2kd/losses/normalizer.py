# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Normalizers: the divisors that make a sum over locations or regions a mean.

Shape shorthand in this file:
    N: images in this process's batch; H, W: height and width of a feature level
"""

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["masked_means", "normalizer"]


def normalizer(total: Tensor, minimum: float, reduce: bool) -> Tensor:
    """What to divide a sum by so that it becomes a mean.

    DistributedDataParallel averages gradients over P processes. With sums s_p and totals t_p, the
    mean of each process divided by its own total is 1/P sum_p s_p / t_p, in which a batch with
    few boxes counts as much as one with many. Divided by the mean total it is the joined batch's,
    1/P sum_p s_p / (1/P sum_q t_q) = sum_p s_p / sum_p t_p.

    Args:
        total: of this process, of any shape: cells under a mask, regions, weights; detached.
        minimum: of the whole batch's total, so that an empty one gives 0 and not 0 / 0.
        reduce: the mean over all processes, which must all call this; else this process's own.

    Returns:
        The same shape.
    """
    if not (reduce and dist.is_available() and dist.is_initialized()):
        return total.clamp(min=minimum)
    total = total.clone()
    dist.all_reduce(total)
    return total.clamp(min=minimum) / dist.get_world_size()


def masked_means(
    costs: dict[str, Tensor], masks: dict[str, Tensor], minimum: float = 1.0, reduce: bool = False
) -> dict[str, Tensor]:
    """Each level's mean of ``cost`` over the batch's cells, weighted by ``mask``.

    Args:
        costs: level name -> (N, H, W).
        masks: level name -> (N, H, W), not negative.
        minimum, reduce: see :func:`normalizer`; all levels are reduced at once.

    Returns:
        dict: level name -> scalar, attached to the cost even where the mask is empty.
    """
    totals = torch.stack([masks[level].sum() for level in costs])
    divisors = normalizer(totals, minimum, reduce).unbind()
    return {
        level: (masks[level] * cost).sum() / divisor
        for (level, cost), divisor in zip(costs.items(), divisors)
    }
