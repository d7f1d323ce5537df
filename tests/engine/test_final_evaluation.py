# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Test-time augmentation after the last step, and expected results of several sets."""

import json

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNNWithTTA

from d2kd.data import register_custom_datasets
from d2kd.engine import DistillTrainer
from d2kd.evaluation.expected_results import UnexpectedResultsError
from tests.common.helpers import distill_cfg, plain_cfg, spread, write_coco_set

AUG = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (48, 64), "TEST.AUG.MAX_SIZE", 96]
SCORES = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "SOLVER.MAX_ITER", 1]


@pytest.fixture(scope="module")
def declared(tmp_path_factory):
    return write_coco_set(tmp_path_factory.mktemp("pictures"))


def with_sets(cfg, declared, folder, *names):
    cfg.DATASETS.CUSTOM = CfgNode({name: CfgNode(declared) for name in names})
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = names[:1], names
    cfg.OUTPUT_DIR = str(folder)
    register_custom_datasets(cfg)
    return cfg


def test_a_distilled_student_is_evaluated_augmented_at_the_end(teacher_files, declared, tmp_path):
    opts = [*AUG, *SCORES, "TEST.EVAL_PERIOD", 1]
    cfg = with_sets(distill_cfg(teacher_files, *opts), declared, tmp_path, "final")
    trainer = DistillTrainer(cfg)
    trainer.train()
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    row = {key: value for line in lines for key, value in json.loads(line).items()}
    assert {"bbox/AP", "bbox_TTA/AP", "voc_TTA/AP50"} <= set(row)
    assert (tmp_path / "inference_TTA" / "final" / "coco_instances_results.json").is_file()
    assert set(trainer._last_eval_results) == {"bbox", "voc", "bbox_TTA", "voc_TTA"}


def test_augmented_detections_are_those_of_detectron2s_own(declared, tmp_path):
    cfg = with_sets(plain_cfg(*AUG, *SCORES), declared, tmp_path, "final")
    torch.manual_seed(0)
    model = spread(DistillTrainer.build_model(cfg)).eval()
    DistillTrainer.test_all(cfg, model)
    augmented = GeneralizedRCNNWithTTA(cfg, model.eval())
    with torch.no_grad():
        loader = DistillTrainer.build_test_loader(cfg, "final")
        expected = [found for batch in loader for found in augmented(batch)]
    found, plain = (
        json.loads((tmp_path / folder / "final" / "coco_instances_results.json").read_text())
        for folder in ("inference_TTA", "inference")
    )
    assert [x["score"] for x in found] == [
        score for x in expected for score in x["instances"].scores.tolist()
    ]
    assert len(found) > 0 and [x["bbox"] for x in found] != [x["bbox"] for x in plain]


def test_without_the_key_nothing_is_augmented(declared, tmp_path):
    cfg = with_sets(plain_cfg(*SCORES), declared, tmp_path, "final")
    assert set(DistillTrainer.test_all(cfg, DistillTrainer.build_model(cfg))) == {"bbox", "voc"}
    assert not (tmp_path / "inference_TTA").exists()


def test_results_of_two_sets(declared, tmp_path):
    cfg = with_sets(plain_cfg(*AUG, *SCORES), declared, tmp_path, "one", "two")
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 50.0, 50.0], ["two", "bbox_TTA", "AP", 50.0, 50.0]]
    found = DistillTrainer(cfg).train()
    assert set(found) == {"one", "two"} and set(found["two"]) >= {"bbox", "bbox_TTA"}
    cfg.TEST.EXPECTED_RESULTS = [["two", "bbox", "AP", 200.0, 1.0]]
    with pytest.raises(UnexpectedResultsError, match="two: bbox/AP is .*, expected 200"):
        DistillTrainer(cfg).train()


def test_a_keypoint_teacher_reads_test_sets_without_keypoints(declared, tmp_path):
    cfg = with_sets(plain_cfg(), declared, tmp_path, "final")
    cfg.MODEL.KEYPOINT_ON = True
    loader = DistillTrainer.build_test_loader(cfg, "final")
    assert [batch[0]["image_id"] for batch in loader] == [0, 1, 2, 3]
    assert cfg.MODEL.KEYPOINT_ON, "the detector's own config is as it was"
