# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The doctor on registered data sets: whatever is in their records is a row, and no traceback."""

import json
import math

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from d2kd.data.datasets import registered
from d2kd.doctor import Status
from d2kd.doctor import data_checks as data
from tests.common.helpers import plain_cfg, write_coco_set

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def _records(**changes):
    """Two records of 64 x 64 pixels with a box each; changes go to the first."""
    item = {"bbox": [4, 4, 20, 30], "bbox_mode": 0, "category_id": 0, "iscrowd": 0}
    first = {"file_name": "a.png", "width": 64, "height": 64, "annotations": [item]}
    return [{**first, **changes}, {**first, "file_name": "b.png"}]


def _register(name, load):
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).thing_classes = ["ant", "bee"]
    return (name,)


def _check(load, monkeypatch, test=()):
    """check -> finding, of a training set of two classes."""
    # The images of these records are not there.
    monkeypatch.setattr(data, "why_unreadable", lambda record, image_format: None)
    monkeypatch.setattr(registered, "_check_images", lambda records, where: None)
    opts = ["DATASETS.TRAIN", _register("doctor_set", load), "DATASETS.TEST", test]
    cfg = plain_cfg(*opts, "MODEL.ROI_HEADS.NUM_CLASSES", 2)
    return {x.check: x for x in data.check_data(cfg)}


@pytest.mark.parametrize(
    "changes, check, words",
    [
        ({"annotations": [{"bbox": [4, 4, 99, 30], "bbox_mode": 0, "category_id": 0}]}, "boxes",
         "1 images have boxes outside or without extent: a.png"),
        ({"annotations": [{"bbox": [4, 4, 4, 30], "bbox_mode": 0, "category_id": 0}]}, "boxes",
         "1 images have boxes outside or without extent: a.png"),
        ({"file_name": "b.png"}, "duplicates", "1 images occur more than once: b.png"),
        ({}, "classes", "1 of 2 classes have no box: bee"),
    ],
)  # fmt: skip
def test_registered_data_is_examined(changes, check, words, monkeypatch):
    found = _check(lambda: _records(**changes), monkeypatch)
    assert found[check].status is Status.WARNING and words in found[check].text, found[check]


def _item(**changes):
    item = {"bbox": [4, 4, 20, 30], "bbox_mode": 0, "category_id": 1, **changes}
    return {key: value for key, value in item.items() if value is not None}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"annotations": None}, "a.png has no annotations"),
        ({"file_name": None, "image_id": 7}, "the image with id 7 has no file_name"),
        ({"annotations": [_item(bbox=None)]}, "a.png has an annotation without bbox"),
        ({"annotations": [_item(bbox_mode=None)]}, "an annotation without bbox_mode"),
        ({"annotations": [_item(category_id=9)]}, "a.png has category_id 9, of 0 to 1 for 2"),
        ({"annotations": [_item(category_id=-1)]}, "a.png has category_id -1, of 0 to 1"),
        ({"annotations": [_item(category_id="ant")]}, "has category_id 'ant'"),
        ({"annotations": [_item(bbox=[4, 4, math.nan, 30])]}, "a.png has the bbox [4, 4, nan, 30]"),
        ({"annotations": [_item(bbox=[4, 4, 10**400, 30])]}, "a.png has the bbox [4, 4, 1000"),
        ({"annotations": [_item(bbox=["4", 4, 20, 9])]}, "a.png has the bbox ['4', 4, 20, 9]"),
        ({"annotations": [_item(bbox=np.ones(4), bbox_mode=1)]}, "converts lists and tuples"),
        ({"annotations": [_item(bbox=[4, 4, 20])]}, "a.png has the bbox [4, 4, 20]"),
        ({"annotations": [_item(bbox_mode=BoxMode.XYWH_REL)]}, "of bbox_mode <BoxMode.XYWH_REL"),
    ],
)
def test_records_that_would_stop_the_training(changes, words, monkeypatch):
    found = _check(lambda: _records(**changes), monkeypatch)
    assert list(found) == ["records"] and found["records"].status is Status.ERROR
    assert found["records"].text.startswith("1 flaws") and words in found["records"].text, found


def test_records_as_detectron2_reads_them(monkeypatch):
    crowd = {"iscrowd": 1, "category_id": -1}
    box = list(np.array([4, 4, 16, 26], np.float32))
    items = [_item(bbox=box, bbox_mode=BoxMode.XYWH_ABS, category_id=np.int64(1)), crowd]

    def load():
        first, second = _records(annotations=items)
        del first["width"], first["height"]
        return [first, second]

    found = _check(load, monkeypatch)
    assert not [x for x in found.values() if x.status is Status.ERROR]
    assert "2 images, 2 boxes" in found["data"].text and found["boxes"].status is Status.OK


def test_sets_that_cannot_be_loaded(monkeypatch, tmp_path):
    def fail():
        return open(tmp_path / "absent.json")

    test = _register("doctor_test_set", fail)
    found = _check(_records, monkeypatch, test)
    assert found["test data"].status is Status.ERROR and found["data"].status is not Status.ERROR
    text = found["test data"].text
    assert text.startswith("DATASETS.TEST 'doctor_test_set' cannot be loaded: FileNotFoundError")
    assert {"boxes", "classes", "duplicates", "images"} < set(found)
    DatasetCatalog.remove("doctor_set")
    found = _check(lambda: {}["lost"], monkeypatch)
    assert list(found) == ["data"] and "KeyError: 'lost'" in found["data"].text


def _many(boxes, mode):
    """Records of 64 x 64 pixels, one for each of 12 images, with these boxes."""
    items = [_item(bbox=list(box), bbox_mode=mode) for box in boxes]
    record = {"width": 64, "height": 64, "annotations": items}
    return [{**record, "file_name": f"{i}.png"} for i in range(12)]


CORNERS = [(40, 30, 60, 62), (33, 2, 50, 60)]


@pytest.mark.parametrize(
    "boxes, mode, status, words",
    [
        (CORNERS, BoxMode.XYWH_ABS, Status.ERROR, "look like"),
        (CORNERS, BoxMode.XYXY_ABS, None, ""),
        ([(0.5, 0.5, 0.2, 0.3)], BoxMode.XYWH_ABS, Status.ERROR, "normalised"),
        ([(40, 30, 20, 30)], BoxMode.XYXY_ABS, Status.ERROR, "x, y, width and height"),
    ],
)
def test_boxes_of_registered_sets_are_judged_as_a_whole(boxes, mode, status, words, monkeypatch):
    found = _check(lambda: _many(boxes, mode), monkeypatch).get("boxes as written")
    assert (found.status, words in found.text) == (status, True) if status else found is None


def test_copies_and_crowded_images_of_registered_sets(monkeypatch):
    items = [_item()] * 2 + [_item(bbox=[i, 1, 40, 40]) for i in range(99)]
    found = _check(lambda: _records(annotations=items), monkeypatch)
    assert "1 annotations repeat" in found["boxes repeated"].text
    assert "(101 objects at most): a.png" in found["crowded images"].text
    assert "annotations" not in found


def test_nothing_odd_is_a_row_too(monkeypatch):
    assert _check(_records, monkeypatch)["annotations"].status is Status.OK


@pytest.mark.parametrize("key, value", [("MASK_ON", "segmentation"), ("KEYPOINT_ON", "keypoints")])
def test_registered_sets_without_masks_or_keypoints(key, value, monkeypatch):
    monkeypatch.setattr(data, "why_unreadable", lambda record, image_format: None)
    opts = ["DATASETS.TRAIN", _register("doctor_set", _records), f"MODEL.{key}", True]
    cfg = plain_cfg(*opts, "MODEL.ROI_HEADS.NUM_CLASSES", 2)
    found = {x.check: x for x in data.check_data(cfg)}
    assert f"a.png has an annotation without {value}" in found["records"].text


@pytest.mark.parametrize("keep, text", [(True, "1 of 4 images, 1 boxes; 6.0 epochs"),
                                        (False, "4 images, 1 boxes; 1.5 epochs")])  # fmt: skip
def test_epochs_count_the_images_that_are_left(keep, text, monkeypatch):
    def load():
        empty = [{**_records()[0], "annotations": [], "file_name": f"{i}.png"} for i in range(2)]
        crowd = {**_records()[0], "annotations": [_item(iscrowd=1)], "file_name": "c.png"}
        return [*empty, crowd, _records()[1]]

    monkeypatch.setattr(data, "why_unreadable", lambda record, image_format: None)
    opts = ["DATASETS.TRAIN", _register("doctor_set", load), "MODEL.ROI_HEADS.NUM_CLASSES", 2]
    cfg = plain_cfg(*opts, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", keep)
    found = {x.check: x for x in data.check_data(cfg)}
    assert text in found["data"].text


def test_images_with_too_few_keypoints_are_not_left():
    cfg = plain_cfg("MODEL.KEYPOINT_ON", True)
    records = _records(annotations=[_item(keypoints=[1, 2, 0, 5, 5, 0])])
    records[1]["annotations"] = [_item(keypoints=[1, 2, 2, 5, 5, 0])]
    assert data.count_left(records, cfg) == 1


def test_repairs_of_declared_sets_are_rows(tmp_path, monkeypatch):
    declared = write_coco_set(tmp_path)
    content = json.loads((tmp_path / "boxes.json").read_text())
    x, y, w, h = content["annotations"][0]["bbox"]
    content["annotations"][0]["bbox"] = [x + w, y + h, -w, -h]
    content["annotations"][1]["bbox"] = [50, 50, 30, 20]
    content["annotations"][2]["bbox"] = [5, 5, 0, 0]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    cfg = plain_cfg("DATASETS.TRAIN", ("mine",))
    cfg.DATASETS.CUSTOM = CfgNode({"mine": declared})
    found = {x.check: x for x in data.check_data(cfg)}
    for check, words in (
        ("boxes swapped", "mine: 1 boxes have a negative width"),
        ("boxes clipped", "mine: 1 boxes leave their image and were clipped to it (by 16 pixels"),
        ("boxes dropped", "mine: 1 boxes without width or height"),
    ):
        assert found[check].status is Status.WARNING and words in found[check].text, found
    assert found["boxes"].text.startswith("all inside their images after 3 repairs")
