# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""docs/zoo.md holds every config of Detectron2's zoo, and says what a few of them do here."""

import re

import pytest

from experiments.zoo import ROLES, YES, Zoo, document, zoo_names
from experiments.zoo import THIN as NARROW
from tests.common import ROOT

ALL = dict.fromkeys(ROLES, YES)
THIN = {**NARROW, "MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.NUM_GROUPS": 1}
ROW = re.compile(r"^\| ([\w.-]+/\S+) \| (.*) \|$", re.M)


def page():
    """Config -> column -> what its cell says."""
    rows = ROW.findall((ROOT / "docs" / "zoo.md").read_text())
    return {f"{name}.yaml": dict(zip(ROLES, cells.split(" | "))) for name, cells in rows}


def test_every_config_of_the_zoo_stands_in_the_page():
    assert list(page()) == zoo_names() and len(zoo_names()) == 59


@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml",
        "COCO-Detection/rpn_R_50_C4_1x.yaml",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
        "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
        "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml",
        "Misc/semantic_R_50_FPN_1x.yaml",
    ],
)
def test_a_thin_one_does_what_the_page_says(tmp_path, clean_catalogs, name):
    found = Zoo(tmp_path, THIN).try_config(name)
    said = page()[name]
    assert {key: value == YES for key, value in found.items()} == {
        key: value == YES for key, value in said.items()
    }


def test_reasons_are_numbered_once():
    refused = {**ALL, "all": "no heads", "student all": "no heads"}
    text = document({"a/b.yaml": refused, "a/c.yaml": {**ALL, "all": "no RPN"}})
    assert "| a/b | yes | no (1) | yes | no (1) |" in text and "1. no heads\n2. no RPN\n" in text
    assert "| **yes** | 2 of 2 | 0 of 2 | 2 of 2 | 1 of 2 |" in text
