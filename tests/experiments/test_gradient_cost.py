# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The cost of measuring gradients, relative to a step of the same round."""

import pytest

from d2kd.utils.timing import Sample
from experiments.benchmark import gradients
from tests.common import ROOT
from tests.common.helpers import make_batch


def test_cost_is_paired_by_round():
    times = {"off": Sample((1.0, 2.0, 10.0)), "on": Sample((1.4, 3.0, 14.0))}
    found = gradients.summarise(times)
    assert found["measurement_over_step"] == pytest.approx(0.4)
    assert found["cost_at_period"] == pytest.approx(0.02)
    assert found["step_s"] == 2.0


def test_only_the_steps_called_on_measure(monkeypatch):
    calls = []
    monkeypatch.setattr(gradients, "gradient_products", lambda *args: calls.append(args))
    name = "Faster R-CNN, SSIM"
    monkeypatch.chdir(ROOT)
    cfg = gradients.read_config(gradients.CONFIGS[name], ["MODEL.DEVICE", "cpu"])
    pair = gradients.build_networks(cfg, random_weights=True, separate_baseline=False)
    times = gradients.time_steps(pair, [make_batch()], steps=2)
    # Two rounds that warm up, and two that are timed.
    assert len(calls) == 4 and len(times["on"].values) == len(times["off"].values) == 2
    levels = pair.student.backbone.output_shape()
    assert list(calls[0][1]) == ["feature"] and len(calls[0][2]) == len(levels)


@pytest.mark.parametrize("config", gradients.CONFIGS.values())
def test_configs_are_there(config):
    assert (ROOT / config).is_file()
