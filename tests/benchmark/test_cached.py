# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The benchmark's steps with a cache are what their names say."""

import pytest

from d2kd.benchmark.cached import (
    bytes_per_image,
    cached_tasks,
    summarise_cache,
    temporary_cache,
)
from d2kd.benchmark.networks import build_networks, read_config, synthetic_batches
from d2kd.benchmark.summary import format_table, summarise
from tests.benchmark.test_benchmark import CONFIG, _times
from tests.common import ROOT
from tests.common.helpers import count_calls


def test_warm_steps_run_no_backbone_and_cold_steps_run_it_for_each_image(monkeypatch):
    monkeypatch.chdir(ROOT)
    pair = build_networks(read_config(CONFIG, ["MODEL.DEVICE", "cpu"]), random_weights=True)
    batches = synthetic_batches(pair.cfg, (64, 64), images=2, boxes=4)
    tasks = cached_tasks(pair, batches, "memory")
    (runs,) = count_calls(pair.optimized_teacher.model.backbone)
    for name, expected in (("warm", 2), ("warm", 0), ("cold", 2), ("cold", 2), ("warm", 0)):
        runs.clear()
        tasks[name](0)
        assert len(runs) == expected, name
    # Of 64 channels in 16 bits on 16^2 + 8^2 + 4^2 + 2^2 + 1 cells.
    model = pair.distiller(list(pair.losses), "memory")
    assert bytes_per_image(model, batches[0]) == 64 * 2 * 341


def test_ratios_are_to_the_baseline_step_of_the_same_round():
    times = _times(cold=(3.0, 6.0, 4.5), warm=(2.2, 4.4, 3.3))
    found = summarise_cache(times)
    ratios = [found[kind]["over_baseline"] for kind in ("off", "cold", "warm")]
    assert ratios == pytest.approx([4.4 / 3, 1.5, 1.1], abs=1e-4)
    assert found["warm"]["iqr"] == 0 and found["cold"]["step_s"] == 4.5
    cache = {"where": "memory", "bytes_per_image": 273000, **found}
    result = {**summarise(times, ["feature", "cls"]), "cache": cache, "random_weights": []}
    text = format_table(result)
    assert "0.273 MB an image" in text and "warm 1.100 (IQR 0.000), 3.3000 s" in text


def test_a_folder_is_left_as_it_was(tmp_path):
    with temporary_cache(str(tmp_path)) as folder:
        assert folder.startswith(str(tmp_path)) and len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    with temporary_cache("memory") as where:
        assert where == "memory"
