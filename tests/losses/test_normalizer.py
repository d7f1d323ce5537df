# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Means of one process; tests/engine/test_processes.py has those over several."""

import numpy as np
import pytest
import torch

from d2kd.losses import masked_means
from d2kd.losses.normalizer import normalizer


def _mean(cost, mask, *args, **kwargs):
    (mean,) = masked_means({"p3": cost}, {"p3": mask}, *args, **kwargs).values()
    return mean


def test_each_level_has_its_weighted_mean_over_the_batch():
    costs = {f"p{i}": torch.randn(2, i, 4, dtype=torch.float64) for i in (5, 3)}
    masks = {level: torch.rand(2, i, 4).double() + 1 for level, i in (("p3", 3), ("p5", 5))}
    found = masked_means(costs, masks)
    assert list(found) == ["p5", "p3"]
    for level, cost in costs.items():
        expected = np.average(cost.numpy(), weights=masks[level].numpy())
        assert found[level].item() == pytest.approx(expected, abs=1e-12)


def test_the_sum_of_a_small_mask_is_divided_by_the_minimum():
    cost, mask = torch.full((1, 1, 2), 3.0), torch.tensor([[[0.1, 0.1]]])
    assert _mean(cost, mask).item() == pytest.approx(0.6)
    assert _mean(cost, mask, minimum=1e-12).item() == pytest.approx(3.0)


@pytest.mark.parametrize("reduce", [False, True])
def test_an_empty_mask_gives_zero_attached(reduce):
    cost = torch.randn(1, 2, 2, requires_grad=True)
    loss = _mean(cost, torch.zeros(1, 2, 2), reduce=reduce)
    loss.backward()
    assert loss.item() == 0 and (cost.grad == 0).all()


def test_without_other_processes_reducing_changes_nothing():
    total = torch.tensor([0.5, 2.0, 7.0])
    assert normalizer(total, 1, True).tolist() == normalizer(total, 1, False).tolist() == [1, 2, 7]
    assert total[0] == 0.5, "the mask's own sum is as it was"
