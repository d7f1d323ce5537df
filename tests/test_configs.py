# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Every yaml says what it must and can be built; on the meta device, so without weights or time."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from d2kd.checkpoint.weights import Loaded
from d2kd.config.defaults import add_d2kd_config
from d2kd.config.student import student_config
from d2kd.engine import build_schedule
from d2kd.model_zoo import CONFIGS, find_config_file, get_config_file
from d2kd.modeling import Distiller, build
from d2kd.modeling.backbone import timm_fpn
from d2kd.utils.errors import ConfigError
from tests.common import ROOT

FILES = sorted((ROOT / "configs").rglob("*.yaml"))
LEAVES = [path for path in FILES if "_base_" not in path.parts]
IDS = [str(path.relative_to(ROOT / "configs")) for path in LEAVES]
every_leaf = pytest.mark.parametrize("path", LEAVES, ids=IDS)


@pytest.fixture(autouse=True)
def at_the_root_without_weights(monkeypatch):
    """Paths in the configs start at the repository; no checkpoint is read or downloaded."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(build, "resolve_weights", lambda weights, key: weights)
    monkeypatch.setattr(build, "sha256", lambda path: "")
    monkeypatch.setattr(build, "load_weights_strict", lambda *_: Loaded([], [], [], []))
    monkeypatch.setattr(timm_fpn, "_load", lambda *_: None)


def _cfg(path):
    if "_lite" in str(path):
        pytest.importorskip("timm")
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "meta"
    return cfg


def _size(module):
    return sum(p.numel() for p in module.parameters())


@every_leaf
def test_builds(path):
    cfg = _cfg(path)
    with torch.device("meta"):
        if not cfg.DISTILL.ENABLED:
            build_model(cfg)
            return
        distiller = Distiller(cfg)
    build_schedule(cfg)
    assert distiller.required.cross_head == cfg.DISTILL.CROSS_HEAD
    assert _size(distiller.student) < _size(distiller.teacher)
    levels = set(cfg.DISTILL.FEATURE.LEVELS or distiller.student.backbone.output_shape())
    if "feature" in distiller.distill_losses:
        assert set(distiller.distill_losses["feature"].adapters) == levels


@every_leaf
def test_the_written_student_is_the_stock_one(path):
    cfg = _cfg(path)
    if cfg.MODEL.META_ARCHITECTURE in ("FCOS", "GFL"):
        return  # Detectron2 has no yaml of these
    if cfg.MODEL.ROI_HEADS.NAME == "CascadeROIHeads":
        return  # a teacher for features, never a student
    with torch.device("meta"):
        stock, ours = build_model(student_config(cfg)), build.build_student(cfg)
    assert list(stock.state_dict()) == list(ours.state_dict())


@every_leaf
def test_first_line_is_its_command(path):
    command = re.match(r"# (?:\w+=\S+ )?python (\S+) --config-file (\S+)", path.read_text())
    assert command, "the first comment is the command that runs it"
    assert command.group(1) == "train_net.py" and (ROOT / command.group(1)).is_file()
    assert ROOT / command.group(2) == path


def test_no_two_write_to_one_folder():
    folders = [_cfg(path).OUTPUT_DIR for path in LEAVES]
    assert len(set(folders)) == len(folders), sorted({f for f in folders if folders.count(f) > 1})


@every_leaf
def test_teacher_weights_are_where_its_config_writes_them(path):
    node = _cfg(path).DISTILL
    own = find_config_file(node.TEACHER.CONFIG_FILE)
    if not node.ENABLED or own is None:
        return
    teacher = _cfg(own)
    shipped = CONFIGS / node.TEACHER.WEIGHTS.removeprefix("d2kd://")
    assert node.TEACHER.WEIGHTS == f"{teacher.OUTPUT_DIR}/model_final.pth" or shipped.is_file()


SCHEME = re.compile(
    r"(coco|shapes|bccd|cards|voc)/"
    r"(teacher/DETECTOR_NET_SCHEDULE|baseline/DETECTOR_NET_SCHEDULE"
    r"|[\w+]+/DETECTOR_NET_from_NET_SCHEDULE(_[a-z]+)?)\.yaml".replace(
        "DETECTOR", "(faster_rcnn|cascade_rcnn|retinanet|fcos|gfl)"
    )
    .replace("NET", r"[A-Za-z]\w*?")
    .replace("SCHEDULE", r"(\dx|\d+)")
)


@every_leaf
def test_the_name_says_what_it_trains(path):
    name = str(path.relative_to(CONFIGS.resolve()))
    assert SCHEME.fullmatch(name), name
    assert _cfg(path).OUTPUT_DIR == f"output/{name[:-5]}"


def _depth(path):
    bases = yaml.safe_load(path.read_text()).get("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    return 1 + max((_depth(path.parent / base) for base in bases), default=0)


@every_leaf
def test_leaves_are_short_and_shallow(path):
    lines = [x for x in path.read_text().splitlines() if not x.startswith("#")]
    assert len(lines) <= 16 and _depth(path) - 1 <= 3


def test_configs_are_found_by_name():
    name = "coco/TAR/faster_rcnn_R_50_from_R_101_FPN_1x.yaml"
    assert Path(get_config_file(name)).samefile(ROOT / "configs" / name)
    with pytest.raises(ConfigError, match="Did you mean 'coco/TAR/faster_rcnn_R_50_from_R_101"):
        get_config_file("coco/TAR/faster_rcnn_R50_from_R_101_FPN_1x.yaml")
    assert find_config_file("../setup.py") is None
