# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How near a student is to its teacher, with every detector."""

import math

import pytest
import torch

from d2kd.data import register_custom_datasets
from d2kd.doctor.after.imitation import measure_imitation
from d2kd.doctor.after.run_folder import read_run
from d2kd.modeling import Distiller
from tests.common.detectors import DETECTORS, FRS, detector_cfg, write_teachers
from tests.common.helpers import distill_cfg, plain_cfg
from tests.doctor.after.toy_runs import declare, make_up


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    return write_teachers(tmp_path_factory.mktemp("teachers"))


def _measure(ours, baseline):
    runs = [read_run(str(folder)) for folder in (ours, baseline)]
    register_custom_datasets(runs[0].cfg)
    return measure_imitation(*runs, Distiller(runs[0].cfg))


@pytest.mark.parametrize("detector", DETECTORS)
def test_students_of_every_detector_are_compared(teachers, tmp_path, detector):
    cfg = declare(
        detector_cfg(teachers, detector, {"DISTILL.FEATURE.MASK": "uniform"}), tmp_path / "data"
    )
    make_up(cfg, tmp_path / "a", seed=1)
    make_up(cfg, tmp_path / "b", seed=2)
    ours, theirs, note = _measure(tmp_path / "a", tmp_path / "b")
    assert ours.images == 4 and "adapters of feature" in note  # 96 channels under 64
    assert list(ours.losses) == ["feature", "cls", "reg"] and list(theirs.losses) == ["cls", "reg"]
    assert list(ours.per_level["feature"]) == list(_levels(cfg))
    assert all(math.isfinite(x) for x in [*ours.losses.values(), *theirs.losses.values()])
    assert ours.similarity and all(0 <= x <= 1 for x in ours.similarity.values())
    assert ours.similarity.keys() == theirs.similarity.keys()
    assert ours.losses["cls"] != theirs.losses["cls"]


def _levels(cfg):
    return Distiller(cfg).student.backbone.output_shape()


def test_losses_are_measured_as_in_evaluation(tmp_path, teacher_files):
    """The statistics of BatchNorm stay, and a second look gives the same."""
    cfg = declare(distill_cfg(teacher_files, "DISTILL.FEATURE.WEIGHT", 0.001), tmp_path / "data")
    content = make_up(cfg, tmp_path / "a")
    make_up(cfg, tmp_path / "b", weights=content["model"])
    run = read_run(str(tmp_path / "a"))
    register_custom_datasets(run.cfg)
    model = Distiller(run.cfg)
    ours, theirs, _ = measure_imitation(run, read_run(str(tmp_path / "b")), model)
    state = model.student.state_dict()
    assert all(torch.equal(state[k], v) for k, v in content["model"].items())
    assert theirs.losses == {k: v for k, v in ours.losses.items() if k != "feature"}
    assert theirs.similarity == ours.similarity


def test_a_student_that_is_its_teacher_is_at_no_distance(tmp_path, teacher_files):
    wide = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.FPN.OUT_CHANNELS", 24]
    cfg = declare(distill_cfg(teacher_files, *wide), tmp_path / "data")
    make_up(cfg, tmp_path / "a", weights=torch.load(teacher_files[1])["model"])
    make_up(cfg, tmp_path / "b", seed=3)
    ours, theirs, note = _measure(tmp_path / "a", tmp_path / "b")
    assert ours.losses["feature"] < 1e-9 and theirs.losses["feature"] > 1
    assert note == "" and theirs.per_level["feature"].keys() == ours.per_level["feature"].keys()
    assert all(x == pytest.approx(1) for x in ours.similarity.values())
    assert all(x < 0.99 for x in theirs.similarity.values())


def test_adapters_are_those_of_the_checkpoint(teachers, tmp_path):
    """Not those that are drawn when the losses are built."""
    cfg = declare(detector_cfg(teachers, "RetinaNet", FRS), tmp_path / "data")
    make_up(cfg, tmp_path / "a", seed=1)
    make_up(cfg, tmp_path / "b", seed=1)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(_measure(tmp_path / "a", tmp_path / "b")[0].losses)
    assert found[0] == found[1]


def test_a_baseline_of_another_network_is_left_out(tmp_path, teacher_files):
    cfg = declare(distill_cfg(teacher_files), tmp_path / "data")
    make_up(cfg, tmp_path / "a")
    other = plain_cfg("MODEL.FPN.OUT_CHANNELS", 8)
    make_up(declare(other, tmp_path / "data"), tmp_path / "b")
    ours, theirs, note = _measure(tmp_path / "a", tmp_path / "b")
    assert ours.losses and theirs is None and "another network" in note
