# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Real data: BCCD, where $DETECTRON2_DATASETS has it (see datasets/README.md)."""

import logging
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.data import register_custom_datasets
from tests.common.toy_sets import make_cfg

# Read at import: the tests' own root replaces the variable while they run.
BCCD = os.path.join(os.path.abspath(os.getenv("DETECTRON2_DATASETS", "datasets")), "bccd")
pytestmark = pytest.mark.skipif(not os.path.isdir(BCCD), reason="no $DETECTRON2_DATASETS/bccd")


def declaration(split):
    return {
        "FORMAT": "voc",
        "ANNOTATIONS": os.path.join(BCCD, "Annotations"),
        "IMAGES": os.path.join(BCCD, "JPEGImages"),
        "SPLIT": os.path.join(BCCD, "ImageSets", "Main", f"{split}.txt"),
    }


def test_splits_classes_and_degenerate_boxes(caplog):
    sizes = {"train": 205, "val": 87, "trainval": 292, "test": 72}
    sets = {f"toy_{split}": declaration(split) for split in sizes}
    with caplog.at_level(logging.WARNING):
        register_custom_datasets(make_cfg(train=["toy_trainval"], test=list(sets), **sets))
    objects = {}
    for split, count in sizes.items():
        records = DatasetCatalog.get(f"toy_{split}")
        assert len(records) == count
        assert all((r["width"], r["height"]) == (640, 480) for r in records)
        objects[split] = sum(len(r["annotations"]) for r in records)
    assert MetadataCatalog.get("toy_test").thing_classes == ["Platelets", "RBC", "WBC"]
    # 4155 + 372 + 361 objects, less the two without extent.
    assert objects["trainval"] + objects["test"] == 4155 + 372 + 361 - 2
    assert objects["train"] + objects["val"] == objects["trainval"]
    (warning,) = [m for m in caplog.messages if m.startswith("toy_trainval: ")]
    assert "2 boxes" in warning
    assert "BloodImage_00343.jpg" in warning and "BloodImage_00338.jpg" in warning
