# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Which evaluators a data set gets for which detector."""

import importlib.util

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    SemSegEvaluator,
)

from d2kd.evaluation import build_evaluator
from d2kd.utils.errors import DatasetError
from tests.common.toy_sets import make_cfg


def register(kind):
    record = {"file_name": "a.png", "sem_seg_file_name": "b.png", "image_id": 1}
    item = {"bbox": [1, 1, 9, 9], "bbox_mode": 0, "category_id": 0}
    DatasetCatalog.register(
        "odd", lambda: [{**record, "height": 48, "width": 64, "annotations": [item]}]
    )
    names = ["a", "b"]
    MetadataCatalog.get("odd").set(
        evaluator_type=kind, thing_classes=names, stuff_classes=names, ignore_label=255, gt_dir="g"
    )


def cfg_of(meta_architecture, mask=False):
    cfg = make_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = meta_architecture, mask
    return cfg


@pytest.mark.parametrize(
    "kind, detector, mask, expected",
    [
        ("cityscapes_instance", "GeneralizedRCNN", True, CityscapesInstanceEvaluator),
        ("cityscapes_instance", "GeneralizedRCNN", False, COCOEvaluator),
        ("cityscapes_instance", "RetinaNet", True, COCOEvaluator),
        ("cityscapes_sem_seg", "SemanticSegmentor", False, CityscapesSemSegEvaluator),
        ("sem_seg", "SemanticSegmentor", False, SemSegEvaluator),
        ("coco_panoptic_seg", "GeneralizedRCNN", False, COCOEvaluator),
        ("coco_panoptic_seg", "SemanticSegmentor", False, SemSegEvaluator),
        ("coco", "ProposalNetwork", False, COCOEvaluator),
    ],
)
def test_the_evaluator_is_that_of_set_and_detector(
    root, tmp_path, monkeypatch, kind, detector, mask, expected
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    register(kind)
    evaluator = build_evaluator(cfg_of(detector, mask), "odd", str(tmp_path))
    assert isinstance(evaluator, expected)


@pytest.mark.parametrize(
    "kind, detector, package",
    [
        ("lvis", "GeneralizedRCNN", "lvis"),
        ("cityscapes_instance", "GeneralizedRCNN", "cityscapesscripts"),
        ("cityscapes_sem_seg", "SemanticSegmentor", "cityscapesscripts"),
        ("coco_panoptic_seg", "PanopticFPN", "panopticapi"),
    ],
)
def test_a_missing_package_is_one_error(root, tmp_path, monkeypatch, kind, detector, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    register(kind)
    with pytest.raises(DatasetError, match=f"package {package}, which is not installed"):
        build_evaluator(cfg_of(detector, mask=True), "odd", str(tmp_path))


@pytest.mark.parametrize(
    "kind, detector",
    [
        ("sem_seg", "GeneralizedRCNN"),
        ("pascal_voc", "ProposalNetwork"),
        ("cityscapes_sem_seg", "GFL"),
    ],
)
def test_a_metric_of_other_outputs_is_refused(root, tmp_path, kind, detector):
    register(kind)
    with pytest.raises(DatasetError, match=f"META_ARCHITECTURE {detector} predicts"):
        build_evaluator(cfg_of(detector), "odd", str(tmp_path))
