# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""docs/zoo.md holds every config of Detectron2's zoo, and says what a few of them do here."""

import re

import pytest

from d2kd.modeling import split_losses
from experiments.zoo import step
from experiments.zoo.lazy_files import LazyZoo, lazy_networks
from experiments.zoo.page import LAZY_HEADING, document
from experiments.zoo.partners import THIN as NARROW
from experiments.zoo.step import ROLES, YES
from experiments.zoo.yaml_files import Zoo, zoo_names
from tests.common import ROOT

ALL = dict.fromkeys(ROLES, YES)
THIN = {**NARROW, "MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.NUM_GROUPS": 1}
ROW = re.compile(r"^\| ([\w.-]+/\S+) (?:\(also (.*)\) )?\| ((?:yes|no|-).*) \|$", re.M)


def sections():
    """The page up to its LazyConfig files, and from there."""
    return (ROOT / "docs" / "zoo.md").read_text().split(f"{LAZY_HEADING}\n")


def page():
    """Config -> column -> what its cell says."""
    rows = ROW.findall(sections()[0])
    return {f"{name}.yaml": dict(zip(ROLES, cells.split(" | "))) for name, _, cells in rows}


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


def test_a_step_whose_own_losses_differ_is_no_yes(tmp_path, clean_catalogs, monkeypatch):
    def halved(found):
        own, distilled = split_losses(found)
        return {name: loss / 2 for name, loss in own.items()}, distilled

    monkeypatch.setattr(step, "split_losses", halved)
    with pytest.raises(AssertionError):
        Zoo(tmp_path, THIN).try_config("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")


def test_every_lazyconfig_file_of_the_zoo_stands_in_the_page_once():
    rows = {name: others.split(", ") for name, others, _ in ROW.findall(sections()[1])}
    networks = lazy_networks()
    assert rows == {x: [y.split("/")[1] for y in others] or [""] for x, others in networks.items()}
    assert len(networks) == 13 and sum(map(len, networks.values())) == 9


def test_a_lazyconfig_teaches_and_is_taught(tmp_path, clean_catalogs):
    zoo, path = LazyZoo(tmp_path), str(_thin_fcos(tmp_path))
    assert zoo.try_config(path, "") | zoo.try_config(path, "student ") == ALL


def _thin_fcos(folder):
    """The zoo's FCOS, thin, on ResNet-18."""
    path = folder / "fcos.py"
    path.write_text(
        "from detectron2.layers import ShapeSpec\n"
        "from detectron2.model_zoo import get_config\n"
        "model = get_config('COCO-Detection/fcos_R_50_FPN_1x.py').model\n"
        "model.backbone.bottom_up.stages.depth = 18\n"
        "del model.backbone.bottom_up.stages.stride_in_1x1\n"
        "model.backbone.out_channels = model.backbone.top_block.in_channels = 32\n"
        "model.head.input_shape = [ShapeSpec(channels=32)] * 5\n"
        "model.head.conv_dims = [32]\n"
    )
    return path


def test_reasons_are_numbered_once():
    refused = {**ALL, "all": "no heads", "student all": "no heads"}
    yamls = {"a/b.yaml": refused, "a/c.yaml": {**ALL, "all": "no RPN"}}
    text = document(yamls, {"a/d.py": {**ALL, "all": "no box"}}, {"a/d.py": ["a/e.py"]})
    assert "| a/d.py (also e.py) | yes | no (1) | yes | yes |" in text and "1. no box\n" in text
    assert "| a/b | yes | no (1) | yes | no (1) |" in text and "1. no heads\n2. no RPN\n" in text
    assert "| **yes** | 2 of 2 | 0 of 2 | 2 of 2 | 1 of 2 |" in text
