# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Values of a LazyConfig, by dotted keys and as a text that is the same in every process."""

import pytest
from omegaconf import OmegaConf

from d2kd.config.lazy_values import lazy_value, without_addresses


@pytest.mark.parametrize(
    "dotted, expected",
    [
        ("train.steps", 3),
        ("train.amp.enabled", False),
        ("train.none", None),
        ("train.steps.x", None),
    ],
)
def test_a_value_or_none(dotted, expected):
    lazy = OmegaConf.create({"train": {"steps": 3, "amp": {"enabled": False}}})
    assert lazy_value(lazy, dotted) == expected


def test_addresses_are_left_out():
    def function():
        """Its address differs from process to process."""

    text = without_addresses(f"norm: {function}, size: 0x10")
    assert " at 0x" not in text and text.endswith("function>, size: 0x10")
