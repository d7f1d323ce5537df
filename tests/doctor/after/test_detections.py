# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A run's own results are used only if they are those of its last checkpoint."""

import json

import pytest
from detectron2.data.datasets import register_coco_instances

from d2kd.data import register_custom_datasets
from d2kd.doctor.after.detections import read_detections
from d2kd.doctor.after.evaluation_set import load_evaluation_sets
from d2kd.doctor.after.run_folder import read_run
from d2kd.utils.errors import DatasetError
from tests.doctor.after.toy_runs import copy_run


@pytest.fixture
def run_and_set(trained, tmp_path):
    """A copy of the distilled run that may be changed, and its test set."""
    folder = copy_run(trained[0], tmp_path / "copy")
    run = read_run(str(folder))
    register_custom_datasets(run.cfg)
    (test_set,) = load_evaluation_sets(run.cfg, str(tmp_path))
    return run, test_set, folder / "inference" / "mine" / "coco_instances_results.json"


def test_results_of_the_last_checkpoint_are_used(run_and_set):
    run, test_set, path = run_and_set
    found = read_detections(run, test_set)
    assert found.rows == json.loads(path.read_text()) and len(found.rows) > 20
    assert found.source == "inference/mine, written by the run itself"


def test_results_with_another_ap_are_not_used(run_and_set):
    run, test_set, path = run_and_set
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**row, "score": 1 - row["score"]} for row in rows]))
    assert read_detections(run, test_set) is None


def test_results_without_the_evaluation_of_the_last_step_are_not_used(run_and_set):
    run, test_set, path = run_and_set
    run.log.rows.pop(run.iterations)
    assert read_detections(run, test_set) is None


@pytest.mark.parametrize("content", ["[{}]", "no JSON"])
def test_results_that_cannot_be_read_are_not_used(run_and_set, content):
    run, test_set, path = run_and_set
    path.write_text(content)
    assert read_detections(run, test_set) is None
    path.unlink()
    assert read_detections(run, test_set) is None


def _with_sets(run, *names):
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = names
    return cfg


def test_a_test_set_without_objects_is_refused(run_and_set, tmp_path):
    run, test_set, _ = run_and_set
    truth = {**test_set.truth.dataset, "annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(truth))
    folder = run.cfg.DATASETS.CUSTOM.mine.IMAGES
    register_coco_instances("no_objects", {}, str(tmp_path / "empty.json"), folder)
    with pytest.raises(DatasetError, match="'no_objects' has no annotated object"):
        load_evaluation_sets(_with_sets(run, "no_objects"), str(tmp_path))


def test_sets_that_cocos_metrics_are_not_for_are_refused(run_and_set, tmp_path):
    run, _, _ = run_and_set
    with pytest.raises(DatasetError, match="DATASETS.TEST is empty"):
        load_evaluation_sets(_with_sets(run), str(tmp_path))
    with pytest.raises(DatasetError, match="evaluator_type 'lvis'"):
        load_evaluation_sets(_with_sets(run, "lvis_v1_val"), str(tmp_path))
