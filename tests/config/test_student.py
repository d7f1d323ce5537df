# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""student.yaml: every key the student needs, none of d2kd's own, and what it is read after."""

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from d2kd.config.detectors import DETECTORS, Detector
from d2kd.config.student import dump_student_config, student_config
from tests.common.helpers import plain_cfg

OWN_NODES = {"FCOS": "FCOS", "GFL": "GFL", "GeneralizedRCNN": None, "RetinaNet": None}
D2KD_KEYS = ["DISTILL", "ACCUMULATE_STEPS", "OPTIMIZER", "BAD_IMAGES", "CUSTOM"]
D2KD_KEYS += ["BEST_METRIC", "STOP_AFTER", "COCO_EVALUATOR", "WRITERS"]


def add_wide_config(cfg):
    """Of a backbone of one's own."""
    cfg.MODEL.WIDE = CfgNode({"WIDTH": 8})
    cfg.SOLVER.TWIST = 0.5


def _cfg(name="GeneralizedRCNN"):
    cfg = plain_cfg("MODEL.META_ARCHITECTURE", name)
    cfg.DATASETS.CUSTOM.mine = CfgNode({"FORMAT": "coco"})
    return cfg


def _read(text, tmp_path, *adders):
    (tmp_path / "student.yaml").write_text(text)
    cfg = get_cfg()
    for add in adders:
        add(cfg)
    cfg.merge_from_file(str(tmp_path / "student.yaml"))
    return cfg


def _first_line(text):
    return text.split("\n")[0]


@pytest.mark.parametrize("name", OWN_NODES)
def test_d2kd_keys_go_and_the_detector_keeps_its_own(name):
    cfg = _cfg(name)
    student = student_config(cfg)
    text = dump_student_config(student)
    assert not any(f"{key}:" in text for key in D2KD_KEYS)
    kept = [node for node in ("FCOS", "GFL") if node in student.MODEL]
    assert kept == ([OWN_NODES[name]] if OWN_NODES[name] else [])
    assert "DISTILL" in cfg and "FCOS" in cfg.MODEL, "the config itself is not changed"
    after = "d2kd.add_d2kd_config, which adds MODEL." if kept else "detectron2.config.get_cfg alone"
    assert _first_line(text).startswith(f"# Read after {after}")


def test_a_plain_student_is_read_by_detectron2_alone(tmp_path):
    cfg = _cfg()
    cfg.MODEL.RPN.NMS_THRESH = 0.65
    student = _read(dump_student_config(student_config(cfg)), tmp_path)
    assert student.MODEL.RPN.NMS_THRESH == 0.65
    assert yaml.safe_load(student.dump()) == yaml.safe_load(student_config(cfg).dump())


def test_keys_of_a_backbone_of_ones_own_are_kept(tmp_path):
    cfg = _cfg("FCOS")
    add_wide_config(cfg)
    cfg.MODEL.WIDE.WIDTH = 32
    text = dump_student_config(student_config(cfg))
    assert _first_line(text) == (
        "# Read after d2kd.add_d2kd_config, which adds MODEL.FCOS and the function that adds "
        "MODEL.WIDE, SOLVER.TWIST."
    )
    cfg = _cfg()
    add_wide_config(cfg)
    cfg.MODEL.WIDE.WIDTH = 32
    text = dump_student_config(student_config(cfg))
    assert _read(text, tmp_path, add_wide_config).MODEL.WIDE.WIDTH == 32


def test_a_registered_detector_keeps_its_node_and_names_its_function(monkeypatch, tmp_path):
    row = Detector(name="Mine", forward_pair="any", add_config=add_wide_config)
    monkeypatch.setitem(DETECTORS, "Mine", row)
    cfg = _cfg("Mine")
    cfg.MODEL.WIDE.WIDTH = 16  # add_d2kd_config has added it
    text = dump_student_config(student_config(cfg))
    line = f"# Read after {__name__}.add_wide_config, which adds MODEL.WIDE, SOLVER.TWIST."
    assert _first_line(text) == line
    assert _read(text, tmp_path, add_wide_config).MODEL.WIDE.WIDTH == 16
    assert "WIDE" not in student_config(_cfg()).MODEL


def test_a_detector_without_a_row_keeps_the_nodes_that_were_set():
    cfg = _cfg("PanopticFPN")
    cfg.MODEL.FCOS.NUM_CLASSES = 3
    student = student_config(cfg)
    assert student.MODEL.FCOS.NUM_CLASSES == 3 and "GFL" not in student.MODEL
