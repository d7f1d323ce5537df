# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Other programs than pycocotools give the same metrics, and are named where they are absent."""

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

from d2kd.evaluation import build_evaluator, check_test_sets, coco_evaluators
from d2kd.utils.errors import ConfigError
from tests.common.toy_sets import make_cfg, write_coco

PROGRAMS = [
    pytest.param(
        "faster_coco_eval",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("faster_coco_eval") is None, reason="extra 'eval' is absent"
        ),
    ),
    pytest.param(
        "detectron2",
        marks=pytest.mark.skipif(
            coco_evaluators._detectron2_class() is None, reason="Detectron2 is not compiled"
        ),
    ),
]
CLASSES, IMAGES, SIDE, KEYPOINTS = 3, 6, 256, 2


def _truth(rng):
    """Objects of all sizes, a few of them crowds."""
    images = [{"id": 10 + i, "file_name": "a.jpg", "width": SIDE, "height": SIDE} for i in range(6)]
    objects = []
    for image in images:
        for number in range(5):
            width, height = np.exp(rng.uniform(2, 5, 2))
            x, y = rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height)
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            item = {"id": len(objects) + 1, "image_id": image["id"], "iscrowd": int(number == 4)}
            item |= {"category_id": int(rng.integers(1, CLASSES + 1)), "area": width * height}
            item |= {"bbox": [x, y, width, height], "segmentation": [corners]}
            item |= {"keypoints": [x, y, 2, x + width, y + height, 2], "num_keypoints": KEYPOINTS}
            objects.append(item)
    names = [{"id": i + 1, "name": f"class {i}", "keypoints": ["a", "b"]} for i in range(CLASSES)]
    return {"images": images, "annotations": objects, "categories": names}


def _detections(rng, truth, image, count):
    """Near the objects, or anywhere; scores that are tied here and there."""
    objects = [item for item in truth["annotations"] if item["image_id"] == image]
    boxes, classes = [], []
    for number in range(count):
        item = objects[number % len(objects)]
        x, y, width, height = np.array(item["bbox"]) * rng.uniform(0.9, 1.1, 4)
        boxes.append([x, y, x + width, y + height])
        near = rng.random() < 0.7
        classes.append(item["category_id"] - 1 if near else rng.integers(CLASSES))
    found = Instances((SIDE, SIDE), pred_boxes=Boxes(torch.tensor(boxes).float()))
    found.scores = torch.tensor(rng.integers(0, 50, count) / 50).float()
    found.pred_classes = torch.tensor(np.array(classes))
    grid = torch.arange(SIDE) + 0.5
    x0, y0, x1, y1 = (side[:, None, None] for side in found.pred_boxes.tensor.T)
    across = (grid[None, None, :] > x0) & (grid[None, None, :] < x1)
    found.pred_masks = across & (grid[None, :, None] > y0) & (grid[None, :, None] < y1)
    points = found.pred_boxes.tensor.reshape(-1, 2, 2)
    found.pred_keypoints = torch.cat([points + 0.5, torch.full((count, 2, 1), 2.0)], dim=2)
    return found


@pytest.fixture
def cfg(root):
    """A set with boxes, masks and keypoints in COCO's format, registered as "toy"."""
    truth = _truth(np.random.default_rng(0))
    write_coco(root, truth)
    register_coco_instances("toy", {}, str(root / "toy.json"), str(root / "pictures"))
    names = [category["name"] for category in truth["categories"]]
    ids = {i + 1: i for i in range(CLASSES)}
    MetadataCatalog.get("toy").set(thing_classes=names, thing_dataset_id_to_contiguous_id=ids)
    cfg = make_cfg(test=["toy"])
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = True
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = KEYPOINTS
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05, 0.1]
    return cfg


def _evaluate(cfg, folder, program, count):
    cfg.TEST.COCO_EVALUATOR = program
    truth = json.loads(open(MetadataCatalog.get("toy").json_file).read())
    evaluator = build_evaluator(cfg, "toy", str(folder / program))
    evaluator.reset()
    rng = np.random.default_rng(1)
    for image in truth["images"]:
        found = _detections(rng, truth, image["id"], count) if count else Instances((SIDE, SIDE))
        if not count:
            found.set("pred_boxes", Boxes(torch.zeros(0, 4)))
        evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
    results = evaluator.evaluate()
    return results, json.loads((folder / program / "coco_instances_results.json").read_text())


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("count, limit", [(12, 100), (130, 100), (130, 120)])
def test_every_metric_is_that_of_pycocotools(cfg, tmp_path, program, count, limit):
    cfg.TEST.DETECTIONS_PER_IMAGE = limit
    expected, file = _evaluate(cfg, tmp_path, "pycocotools", count)
    found, other_file = _evaluate(cfg, tmp_path, program, count)
    assert set(found) == set(expected) == {"bbox", "segm", "keypoints"}
    for task, metrics in expected.items():
        assert found[task] == pytest.approx(metrics, abs=1e-6, nan_ok=True)
        assert list(found[task]) == list(metrics)
    assert 5 < expected["bbox"]["AP"] < 95 and 5 < expected["segm"]["AP"] < 95
    assert 1 < expected["keypoints"]["AP"] < 95
    assert len(file) == len(other_file) and all(a == b for a, b in zip(file, other_file))


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_found_is_nan_for_each(cfg, tmp_path, program):
    results, file = _evaluate(cfg, tmp_path, program, 0)
    assert file == [] and all(math.isnan(value) for value in results["bbox"].values())


@pytest.mark.parametrize(
    "program, words",
    [
        ("faster_coco_eval", "faster-coco-eval is not installed: run pip install"),
        ("detectron2", "built without its compiled extension"),
    ],
)
def test_a_program_that_is_not_installed_is_named_before_training(
    cfg, tmp_path, monkeypatch, program, words
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(coco_evaluators, "_detectron2_class", lambda: None)
    cfg.TEST.COCO_EVALUATOR = program
    with pytest.raises(ConfigError, match=f"TEST.COCO_EVALUATOR is '{program}'.*{words}"):
        check_test_sets(cfg, str(tmp_path))
