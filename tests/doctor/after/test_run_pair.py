# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Which pairs of runs are refused, and what is warned of."""

import dataclasses

import pytest
from detectron2.config import CfgNode

from d2kd.doctor.after.run_folder import read_run
from d2kd.doctor.after.run_pair import check_pair_of_runs
from d2kd.utils.errors import ConfigError, DatasetError


def _read(trained):
    return [read_run(str(folder)) for folder in trained]


def _with(run, *options, **content):
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(options))
    return dataclasses.replace(run, cfg=cfg, content={**run.content, **content})


def test_a_run_and_its_baseline_are_compared_without_a_remark(trained):
    assert check_pair_of_runs(*_read(trained)) == []


def test_swapped_folders_are_named_in_their_right_order(trained):
    ours, baseline = _read(trained)
    with pytest.raises(ConfigError, match=f"swapped.*--after {ours.folder} {baseline.folder}"):
        check_pair_of_runs(baseline, ours)


def test_one_folder_twice_and_two_baselines_are_refused(trained):
    ours, baseline = _read(trained)
    with pytest.raises(ConfigError, match="twice"):
        check_pair_of_runs(ours, ours)
    with pytest.raises(ConfigError, match="neither"):
        check_pair_of_runs(baseline, dataclasses.replace(baseline, folder="elsewhere"))


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_other_data_sets_are_refused(trained, key):
    ours, baseline = _read(trained)
    other = _with(baseline, f"DATASETS.{key}", ("d2kd_shapes_test",))
    with pytest.raises(DatasetError, match=f"DATASETS.{key}: mine .* d2kd_shapes_test in"):
        check_pair_of_runs(ours, other)


def test_a_set_of_the_same_name_that_is_declared_otherwise_is_refused(trained):
    ours, baseline = _read(trained)
    other = _with(baseline)
    other.cfg.DATASETS.CUSTOM.mine = CfgNode({"FORMAT": "coco", "ANNOTATIONS": "other.json"})
    with pytest.raises(DatasetError, match="other.json"):
        check_pair_of_runs(ours, other)


def test_other_classes_are_refused(trained):
    ours, baseline = _read(trained)
    names = {"names": ["a", "b", "c", "d"]}
    with pytest.raises(DatasetError, match="other classes: class 0, .* a, b, c, d in"):
        check_pair_of_runs(ours, _with(baseline, classes=names))
    with pytest.raises(DatasetError, match="other classes"):
        check_pair_of_runs(ours, _with(baseline, "MODEL.ROI_HEADS.NUM_CLASSES", 3))


def test_what_blurs_the_comparison_is_warned_of(trained):
    ours, baseline = _read(trained)
    other = _with(
        baseline,
        *("SEED", 2, "SOLVER.BASE_LR", 0.1, "SOLVER.CHECKPOINT_PERIOD", 7),
        *("DISTILL.STUDENT.INHERIT", ("roi_heads",), "SOLVER.MAX_ITER", 3),
    )
    found = {x.check: x for x in check_pair_of_runs(ours, other)}
    assert list(found) == ["seeds", "other keys", "start", "not complete"]
    assert found["seeds"].advice == "train the baseline with SEED 1"
    assert "SOLVER.BASE_LR 0.0001 and 0.1" in found["other keys"].text
    assert "CHECKPOINT_PERIOD" not in found["other keys"].text
    assert "iteration 2 of 3" in found["not complete"].text


def test_seeds_that_are_drawn_and_a_second_teacher_are_warned_of(trained):
    ours = _read(trained)[0]
    other = dataclasses.replace(_with(ours, "SEED", -1), folder="elsewhere")
    assert [x.check for x in check_pair_of_runs(ours, other)] == ["baseline", "seeds"]
