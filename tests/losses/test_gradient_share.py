# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Norms and products of gradients, against closed forms and a joined batch."""

import pytest
import torch
import torch.distributed as dist

from d2kd.engine.distributed.process_group import Group, join_group
from d2kd.engine.distributed.worker_processes import run_children
from d2kd.losses.gradient_share import gradient_products, loss_gradients
from tests.common.many import fast_start, free_address


def _linear(features, slopes):
    """A loss whose gradient at the features is ``slopes``; None: it does not reach them."""
    return sum((x * s).sum() for x, s in zip(features, slopes) if s is not None)


def _features(dtype=torch.float32):
    torch.manual_seed(0)
    weight = torch.ones((), requires_grad=True)
    return [torch.randn(2, 3, n, n).to(dtype) * weight.to(dtype) for n in (4, 2)], weight


def test_products_and_ratios_by_hand():
    features, _ = _features()
    theirs = [torch.full_like(features[0], 2.0), torch.zeros_like(features[1])]
    ours = [torch.zeros_like(x) for x in features]
    ours[0][0, 0, 0, 0], ours[1][0, 0, 0, 0] = 3.0, 4.0
    found = gradient_products(_linear(features, theirs), {"a": _linear(features, ours)}, features)
    cells = features[0].numel()
    torch.testing.assert_close(found, torch.tensor([4.0 * cells, 25.0, 6.0]))
    ratio, cosine = loss_gradients(found, ["a"])["a"]
    norm = 2 * cells**0.5
    assert ratio.item() == pytest.approx(5 / norm)
    assert cosine.item() == pytest.approx(6 / (5 * norm))


@pytest.mark.parametrize("factor", [1.0, -0.5])
def test_cosine_of_parallel_gradients(factor):
    features, _ = _features()
    slopes = [torch.randn_like(x) for x in features]
    losses = {"a": _linear(features, [factor * s for s in slopes])}
    found = loss_gradients(gradient_products(_linear(features, slopes), losses, features), ["a"])
    assert found["a"].ratio.item() == pytest.approx(abs(factor), rel=1e-5)
    assert found["a"].cosine.item() == pytest.approx(1.0 if factor > 0 else -1.0, rel=1e-5)


def test_a_level_that_a_loss_does_not_reach_counts_as_0():
    features, _ = _features()
    ones = [torch.ones_like(x) for x in features]
    losses = {
        "first": _linear(features, [ones[0], None]),
        "last": _linear(features, [None, ones[1]]),
    }
    found = gradient_products(_linear(features, [None, ones[1]]), losses, features)
    first, last = (float(x.numel()) for x in features)
    assert found.tolist() == [last, first, last, 0.0, last]


def test_half_precision_is_summed_in_float32():
    features, _ = _features(torch.float16)
    slopes = [torch.full_like(x, 100.0) for x in features]
    found = gradient_products(_linear(features, slopes), {}, features)
    # The square of each of 120 gradients is 10,000; their sum would not fit in half precision.
    assert found.dtype == torch.float32 and found.item() == 120 * 1e4


def test_the_graph_stays_and_parameters_get_no_gradient():
    features, weight = _features()
    total = _linear(features, [torch.ones_like(x) for x in features])
    gradient_products(total, {"a": 2 * total}, features)
    assert weight.grad is None
    total.backward()
    assert weight.grad is not None


def _half(rank, group, folder):
    torch.set_num_threads(1)
    join_group(group, rank)
    torch.save(_of_images(slice(rank, rank + 1)), folder / f"{rank}.pth")
    dist.barrier()


def _of_images(part):
    """The products of two losses that are sums over images, of some of the images."""
    features, _ = _features()
    slopes = [torch.randn_like(x) for x in features]
    mine = [x[part] for x in features]
    detection = _linear(mine, [s[part] for s in slopes])
    return gradient_products(detection, {"a": sum((x**3).sum() for x in mine)}, mine)


def test_several_processes_see_the_joined_batch(monkeypatch, tmp_path):
    fast_start(monkeypatch)
    group = Group("cpu", 2, address=free_address())
    run_children(_half, {str(rank): (rank, group, tmp_path) for rank in (0, 1)})
    found = [torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)]
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], _of_images(slice(None)))
