# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""TEST.BEST_METRIC that no evaluation gives is refused before the first step, where it is known."""

import math

import pytest
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.structures import Instances

from d2kd.data import register_custom_datasets
from d2kd.evaluation import build_evaluator, check_test_sets
from d2kd.evaluation.best_metric import check_best_metric
from d2kd.utils.errors import ConfigError
from tests.common.toy_sets import coco_content, make_cfg, write_coco
from tests.evaluation.test_coco import perfect


@pytest.fixture
def cfg(root):
    declared = write_coco(root, coco_content())
    cfg = make_cfg(train=["more"], test=["toy"], toy=declared, more=declared)
    register_custom_datasets(cfg)
    return cfg


def check(cfg, metric, folder, **kwargs):
    cfg.TEST.BEST_METRIC = metric
    check_test_sets(cfg, str(folder), **kwargs)


@pytest.mark.parametrize("metric", ["bbox/AP", "bbox/APs", "bbox/AP-ant", "voc/AP50-bee", ""])
def test_what_the_evaluation_gives_passes(cfg, tmp_path, metric):
    check(cfg, metric, tmp_path)


def test_the_names_are_those_of_the_results(cfg, tmp_path):
    evaluator = build_evaluator(cfg, "toy", str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get("toy"):
        evaluator.process([record], [perfect(record)])
    for task, found in evaluator.evaluate().items():
        for name in found:
            check(cfg, f"{task}/{name}", tmp_path)


def test_without_a_detection_the_metrics_are_the_same(cfg, tmp_path):
    evaluator = build_evaluator(cfg, "toy", str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get("toy"):
        empty = Instances((48, 64), **vars(perfect(record)["instances"][[]])["_fields"])
        evaluator.process([record], [{"instances": empty}])
    results = evaluator.evaluate()["bbox"]
    assert math.isnan(results["AP-ant"]) and math.isnan(results["AP-bee"])


@pytest.mark.parametrize(
    "metric, hint", [("bbox/ap", "bbox/AP'"), ("AP50", "voc/AP50'"), ("segm/AP", "segm/AP")]
)
def test_another_name_is_refused(cfg, tmp_path, metric, hint):
    cfg.MODEL.MASK_ON = True  # but no object has a mask
    with pytest.raises(ConfigError, match=f"^TEST.BEST_METRIC is '{metric}': set it to .*bbox/AP,"):
        check(cfg, metric, tmp_path)
    check(cfg, metric, tmp_path, train=False)


def test_of_several_sets_one_is_named(cfg, tmp_path):
    cfg.DATASETS.TEST = ("toy", "more")
    check(cfg, "more/bbox/AP", tmp_path)
    with pytest.raises(ConfigError, match="set it to one of toy/bbox/AP, .*Did you mean"):
        check(cfg, "bbox/AP", tmp_path)


def test_metrics_that_are_not_known_are_not_judged(cfg, tmp_path):
    evaluators = [build_evaluator(cfg, "toy", str(tmp_path)), DatasetEvaluator()]
    cfg.TEST.BEST_METRIC = "sem_seg/mIoU"
    check_best_metric(cfg, {"toy": DatasetEvaluators(evaluators)})
    cfg.TEST.BEST_METRIC = "mine/AP"
    cfg.MODEL.META_ARCHITECTURE = "MyDetector"
    check_best_metric(cfg, {"toy": evaluators[0]})
