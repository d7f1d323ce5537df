# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What the last evaluation would stumble over is found before the first step."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.data import register_custom_datasets
from d2kd.doctor.evaluation_checks import check_evaluation
from d2kd.doctor.finding import Status
from d2kd.evaluation import build_evaluator, check_test_sets
from d2kd.utils.errors import ConfigError, DatasetError
from tests.common.toy_sets import coco_content, make_cfg, write_coco, write_image

ITEM = {"bbox": [1, 1, 9, 9], "bbox_mode": 0, "category_id": 0}


def register(root, *records):
    """Records of images that are there, changed by these."""
    write_image(root / "a.png")
    plain = {"file_name": str(root / "a.png"), "height": 48, "width": 64, "annotations": [ITEM]}
    DatasetCatalog.register("mine", lambda: [{**plain, **record} for record in records])
    MetadataCatalog.get("mine").set(evaluator_type="coco", thing_classes=["a"])
    return make_cfg(test=["mine"])


def test_sets_that_can_be_evaluated_pass(root, tmp_path):
    cfg = register(root, {"image_id": 1}, {"image_id": 2})
    check_test_sets(cfg, str(tmp_path))
    assert check_evaluation(cfg).status is Status.OK


@pytest.mark.parametrize(
    "records, text",
    [
        ([], "has no image"),
        ([{"image_id": 1}, {"image_id": 1}], "several images have one image_id"),
        ([{}], "no image_id in .*a.png"),
        ([{"image_id": 1, "file_name": "gone.png"}], "1 of 1 images are not there: gone.png"),
    ],
)
def test_records_that_cannot_be_evaluated_are_named(root, tmp_path, records, text):
    cfg = register(root, *records)
    with pytest.raises(DatasetError, match=f"'mine'.*{text}"):
        check_test_sets(cfg, str(tmp_path))
    finding = check_evaluation(cfg)
    assert finding.status is Status.ERROR and "mine" in finding.text


def test_a_loader_that_fails_is_named(root, tmp_path):
    cfg = make_cfg(test=["voc_2007_test"])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 20
    with pytest.raises(DatasetError, match="'voc_2007_test' cannot be loaded: FileNotFoundError"):
        check_test_sets(cfg, str(tmp_path))


def test_an_evaluator_that_cannot_be_built_is_named(root, tmp_path):
    cfg = register(root, {"image_id": 1})
    (root / "broken.json").write_text("{")
    MetadataCatalog.get("mine").json_file = str(root / "broken.json")
    with pytest.raises(DatasetError, match="'mine' cannot be evaluated: JSONDecodeError"):
        check_test_sets(cfg, str(tmp_path))


def test_the_doctor_leaves_no_file_for_the_evaluation_to_trust(root, tmp_path):
    cfg = make_cfg(test=["toy"], toy=write_coco(root, coco_content()))
    register_custom_datasets(cfg)
    assert check_evaluation(cfg).status is Status.OK
    build_evaluator(cfg, "toy", str(tmp_path / "later"))
    assert (tmp_path / "later" / "toy_coco_format.json").is_file()


@pytest.mark.parametrize(
    "entries, text",
    [
        ([["bbox", "AP"]], "write .task, metric, value, tolerance"),
        ([["bbox", "AP", "x", 1]], "write .task"),
        ([["other", "bbox", "AP", 1, 1]], "names the set 'other'"),
    ],
)
def test_expected_results_that_mean_nothing_are_refused(root, tmp_path, entries, text):
    cfg = register(root, {"image_id": 1})
    cfg.TEST.EXPECTED_RESULTS = entries
    with pytest.raises(ConfigError, match=text):
        check_test_sets(cfg, str(tmp_path))
    cfg.DATASETS.TEST = ()
    with pytest.raises(ConfigError, match="DATASETS.TEST is empty"):
        check_test_sets(cfg, str(tmp_path))
