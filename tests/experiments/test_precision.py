# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The errors of a teacher in half precision, on the shipped teacher and a few images."""

import pytest
import torch

from d2kd.data.datasets import synthetic_shapes as shapes
from experiments.precision import PRECISIONS, main, relative_errors
from tests.common import ROOT


def test_relative_errors():
    expected = {"a": torch.tensor([3.0, 4.0]), "empty": torch.empty(0), "zero": torch.zeros(1)}
    found = {"a": torch.tensor([3.0, 4.5]), "empty": torch.empty(0), "zero": torch.ones(1)}
    assert relative_errors(found, expected) == {"a": pytest.approx(0.1)}


def test_half_precision_is_close_and_float16_closer(tmp_path, monkeypatch, capsys):
    shapes.generate(tmp_path / shapes.FOLDER, {"train": 4, "val": 1, "test": 1})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    config = "configs/shapes/TAR/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml"
    options = [
        "SOLVER.IMS_PER_BATCH",
        "2",
        "DATALOADER.NUM_WORKERS",
        "0",
        "DISTILL.REG.GATE",
        "none",
    ]
    main(["--config-file", config, *options, "OUTPUT_DIR", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    rows = [line.rsplit(maxsplit=1) for line in printed if line.startswith(PRECISIONS)]
    errors = {tuple(key.split(maxsplit=1)): float(error) for key, error in rows}
    names = {name for _, name in errors}
    assert names == {"features", "logits", "deltas", "loss feature", "loss cls", "loss reg"} | {
        "gradient"
    }
    assert 1e-3 < errors["bfloat16", "features"] < 3e-2
    assert errors["float16", "features"] < errors["bfloat16", "features"] / 4
    assert all(0 <= error < 0.2 for error in errors.values())
