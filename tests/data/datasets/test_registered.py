# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Sets that Python code registers are checked before training, as declared ones are."""

import logging

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.data import check_registered_sets
from d2kd.utils.errors import DatasetError
from tests.common.toy_sets import make_cfg, write_image

ITEM = {"bbox": [10, 10, 30, 30], "bbox_mode": 0, "category_id": 0, "iscrowd": 0}
SPLITS = ("TRAIN", "TEST")


def register(root, *items, **changes):
    """A set of one image of 64 x 48 pixels with these annotations."""
    write_image(root / "a.png")
    record = {"file_name": str(root / "a.png"), "width": 64, "height": 48, "image_id": 1}
    record.update({"annotations": [{**ITEM, **item} for item in items or ({},)], **changes})
    DatasetCatalog.register("mine", lambda: [record])
    MetadataCatalog.get("mine").json_file = "mine.json"


def check(split, *opts):
    cfg = make_cfg(**{split.lower(): ["mine"]})
    cfg.merge_from_list(opts)
    check_registered_sets(cfg)


@pytest.mark.parametrize("split", SPLITS)
def test_a_loader_that_fails_is_named_with_its_file(root, split):
    DatasetCatalog.register("mine", lambda: [][0])
    MetadataCatalog.get("mine").json_file = "mine.json"
    with pytest.raises(DatasetError, match=f"{split} 'mine' cannot be .* from mine.json: IndexE"):
        check(split)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "items, changes, text",
    [
        ([{"iscrowd": 1}], {}, "all 1 annotations are iscrowd"),
        ([{"bbox": [0.1, 0.1, 0.5, 0.5]}], {}, "normalised"),
        ([{"bbox": [30, 20, 60, 45], "bbox_mode": 1}], {}, "look like. Write x1 - x0"),
        ([{}], {"width": 48, "height": 64}, "a.png is 64x48, annotated as 48x64"),
    ],
)
def test_annotations_that_are_not_what_they_say_are_refused(root, split, items, changes, text):
    register(root, *items, **changes)
    with pytest.raises(DatasetError, match=f"{split} 'mine'.*{text}"):
        check(split)


@pytest.mark.parametrize("split", SPLITS)
def test_deep_colour_is_refused(root, split):
    register(root)
    cv2.imwrite(str(root / "a.png"), np.full((48, 64, 3), 900, dtype=np.uint16))
    with pytest.raises(DatasetError, match="more than 8 bits a channel"):
        check(split)


def test_what_heads_are_trained_on_is_there(root):
    register(root)
    for key, part in (("MASK_ON", "segmentation"), ("KEYPOINT_ON", "keypoints")):
        with pytest.raises(DatasetError, match=f"MODEL.{key} is True, .* no '{part}': .*a.png"):
            check("TRAIN", f"MODEL.{key}", True)
        check("TEST", f"MODEL.{key}", True)


def test_a_training_set_without_objects_is_refused_unless_it_may_be_empty(root, caplog):
    register(root, annotations=[])
    with pytest.raises(DatasetError, match="not one object is left in 1 images"):
        check("TRAIN")
    with caplog.at_level(logging.WARNING):
        check("TRAIN", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)
        check("TEST")
    assert caplog.text.count("not one object in 1 images") == 2


def test_boxes_that_detectron2_would_leave_out_are_counted(root, caplog):
    register(root, {}, {"bbox": [30, 30, 10, 10]}, {"bbox": [5, 5, -2, 3], "bbox_mode": 1})
    with caplog.at_level(logging.WARNING):
        check("TRAIN")
    assert "1 images have boxes without width or height, or with a negative one" in caplog.text


def test_sound_sets_and_those_that_hold_no_boxes_pass(root, caplog):
    register(root)
    with caplog.at_level(logging.WARNING):
        check("TRAIN")
        DatasetCatalog.register("stuff", lambda: [{"file_name": str(root / "a.png")}])
        check_registered_sets(make_cfg(train=["stuff"], test=["stuff"]))
    assert not caplog.text


def test_training_sets_are_not_read_for_evaluation_only(root):
    DatasetCatalog.register("mine", lambda: [][0])
    check_registered_sets(make_cfg(train=["mine"]), train=False)
