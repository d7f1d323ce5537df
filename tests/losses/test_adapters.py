# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Adapters: which layer stands between which channels."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from d2kd.losses.adapters import build_adapters

SAME = {"p3": ShapeSpec(channels=8, stride=8), "p4": ShapeSpec(channels=8, stride=16)}
WIDER = {"p3": ShapeSpec(channels=12, stride=8), "p4": ShapeSpec(channels=8, stride=16)}


def _kinds(adapters):
    return {
        level: getattr(layer, "kernel_size", type(layer).__name__)
        for level, layer in adapters.items()
    }


@pytest.mark.parametrize(
    "kind, teacher, expected",
    [
        ("auto", SAME, {"p3": "Identity", "p4": "Identity"}),
        ("auto", WIDER, {"p3": (1, 1), "p4": "Identity"}),
        ("none", SAME, {"p3": "Identity", "p4": "Identity"}),
        ("1x1", SAME, {"p3": (1, 1), "p4": (1, 1)}),
        ("3x3", WIDER, {"p3": (3, 3), "p4": (3, 3)}),
    ],
)
def test_layer_of_each_kind(kind, teacher, expected):
    adapters = build_adapters(kind, ["p3", "p4"], SAME, teacher)
    assert _kinds(adapters) == expected
    for level, shape in teacher.items():
        adapted = adapters[level](torch.ones(2, 8, 5, 7))
        assert adapted.shape == (2, shape.channels, 5, 7), "the size of the map is kept"
    convs = [m for m in adapters.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.bias is not None for m in convs)


@pytest.mark.parametrize("kind, kernel", [("1x1", 1), ("3x3", 3)])
def test_an_adapter_starts_as_a_plain_convolution_of_pytorch(kind, kernel):
    wide = {"p3": ShapeSpec(channels=64, stride=8)}
    conv = build_adapters(kind, ["p3"], wide, wide)["p3"]
    bound = (64 * kernel**2) ** -0.5  # weights and biases are uniform in +-bound
    assert conv.weight.abs().max() <= bound and conv.bias.abs().max() <= bound
    assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert (conv.bias != 0).all()


def test_only_the_distilled_levels_have_one():
    assert list(build_adapters("3x3", ["p4"], SAME, WIDER)) == ["p4"]


def test_none_between_different_channels_names_key_and_level():
    with pytest.raises(ValueError, match="p3 has 8 .* 12 .*DISTILL.FEATURE.ADAPTER"):
        build_adapters("none", ["p3", "p4"], SAME, WIDER)


def test_an_unknown_kind_is_refused():
    with pytest.raises(KeyError, match="5x5"):
        build_adapters("5x5", ["p3"], SAME, SAME)
