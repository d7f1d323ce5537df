# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""build_evaluator: which metrics for which set, on predictions whose result is known."""

import shutil

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from d2kd.data import register_custom_datasets
from d2kd.evaluation import build_evaluator
from d2kd.evaluation.evaluator import boxes_of
from d2kd.utils.errors import DatasetError
from tests.common.toy_sets import coco_content, make_cfg, write_coco, write_xml


def predict(record, boxes, classes):
    """What a detector returns for one image, scores falling."""
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(torch.as_tensor(boxes).float().reshape(-1, 4))
    instances.scores = torch.linspace(0.9, 0.5, len(boxes))
    instances.pred_classes = torch.as_tensor(classes, dtype=torch.int64)
    return {"instances": instances}


def truth_of(record):
    items = [item for item in record["annotations"] if not item["iscrowd"]]
    return [item["bbox"] for item in items], [item["category_id"] for item in items]


def evaluate(cfg, folder, change=lambda boxes, classes: (boxes, classes)):
    """Evaluate the ground truth of the set "toy", changed, as predictions."""
    register_custom_datasets(cfg)
    evaluator = build_evaluator(cfg, "toy", str(folder))
    evaluator.reset()
    for record in DatasetCatalog.get("toy"):
        evaluator.process([record], [predict(record, *change(*truth_of(record)))])
    return evaluator.evaluate()


def test_right_predictions_reach_100_on_voc_layout(root, voc, tmp_path):
    result = evaluate(make_cfg(test=["toy"], toy=voc), tmp_path / "out")
    assert result["bbox"]["AP"] == pytest.approx(100)
    assert result["bbox"]["AP50"] == pytest.approx(100)
    # "cat" and one "dog" to find; the other dog is difficult.
    assert result["voc"] == {"AP50": 100, "AP50-cat": 100, "AP50-dog": 100}


def test_a_class_never_predicted_counts_as_0(root, voc, tmp_path):
    def without_cats(boxes, classes):
        kept = [index for index, category in enumerate(classes) if category == 1]
        return [boxes[index] for index in kept], [1] * len(kept)

    result = evaluate(make_cfg(test=["toy"], toy=voc), tmp_path / "out", without_cats)
    assert result["voc"] == {"AP50": 50, "AP50-cat": 0, "AP50-dog": 100}
    assert result["bbox"]["AP"] == pytest.approx(50)


def test_coco_ids_that_are_not_contiguous(root, tmp_path):
    # Files without "area" and "iscrowd", as many tools write them.
    cfg = make_cfg(test=["toy"], toy=write_coco(root, coco_content()))
    assert evaluate(cfg, tmp_path / "out")["bbox"]["AP"] == pytest.approx(100)
    swapped = evaluate(cfg, tmp_path / "out", lambda b, c: (b, [1 - category for category in c]))
    assert swapped["bbox"]["AP"] == 0 and swapped["voc"]["AP50"] == 0


def test_degenerate_boxes_are_not_counted_as_missed(root, voc, tmp_path):
    write_xml(root / "toy/xml/b.xml", [("dog", (9, 9, 9, 9)), ("cat", (1, 1, 20, 20))])
    result = evaluate(make_cfg(test=["toy"], toy=voc), tmp_path / "out")
    assert result["bbox"]["AP"] == pytest.approx(100) and result["voc"]["AP50"] == 100


def test_ap50_of_both_kinds_is_near_on_noisy_predictions(root, voc, tmp_path):
    rng = np.random.default_rng(0)
    boxes = [(x, y, x + 14, y + 14) for x in (2, 22, 42) for y in (2, 22)]
    for name in ("a", "b"):
        write_xml(root / f"toy/xml/{name}.xml", [("dog", tuple(map(int, box))) for box in boxes])

    def noisy(boxes, classes):
        return np.array(boxes) + rng.normal(0, 3.5, (len(boxes), 4)), classes

    result = evaluate(make_cfg(test=["toy"], toy=voc), tmp_path / "out", noisy)
    assert 20 < result["voc"]["AP50"] < 95
    # COCO samples the curve at 101 points of recall, VOC integrates it.
    assert result["bbox"]["AP50"] == pytest.approx(result["voc"]["AP50"], abs=2)


def test_no_predictions(root, voc, tmp_path):
    result = evaluate(make_cfg(test=["toy"], toy=voc), tmp_path / "out", lambda b, c: ([], []))
    assert result["voc"]["AP50"] == 0


def test_annotations_of_an_earlier_run_are_not_trusted(root, voc, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "toy_coco_format.json").write_text("of an earlier run")
    cfg = make_cfg(test=["toy"], toy=voc)
    assert evaluate(cfg, out)["bbox"]["AP"] == pytest.approx(100)
    shutil.rmtree(out)
    assert evaluate(cfg, out)["bbox"]["AP"] == pytest.approx(100)


def test_stock_sets_by_their_type(tmp_path):
    cfg = make_cfg()
    MetadataCatalog.get("odd").evaluator_type = "foo"
    with pytest.raises(DatasetError, match="'odd' has the evaluator_type 'foo'"):
        build_evaluator(cfg, "odd")
    evaluator = build_evaluator(cfg, "voc_2007_test", str(tmp_path))
    assert isinstance(evaluator, PascalVOCDetectionEvaluator)


def test_stock_coco_set_has_stock_metrics(root, tmp_path):
    write_coco(root, coco_content())
    MetadataCatalog.get("stock").set(
        evaluator_type="coco", json_file=str(root / "toy.json"), thing_classes=["bee", "ant"]
    )
    assert isinstance(build_evaluator(make_cfg(), "stock", str(tmp_path)), COCOEvaluator)


def test_boxes_in_either_mode_are_one_truth():
    item = {"category_id": 0, "iscrowd": 0}
    xyxy = {**item, "bbox": [1, 2, 11, 22], "bbox_mode": BoxMode.XYXY_ABS}
    xywh = {**item, "bbox": [1, 2, 10, 20], "bbox_mode": BoxMode.XYWH_ABS}
    truth = boxes_of([{"image_id": 5, "annotations": [xyxy, xywh]}], 0)
    assert truth["gt_boxes"].tolist() == [[1, 2, 11, 22]] * 2
    assert truth["gt_images"].tolist() == ["5", "5"]
