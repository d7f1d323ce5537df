# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The COCO presets hold what the papers and their released code publish, value by value."""

import re

import pytest
from detectron2.config import get_cfg
from detectron2.model_zoo import get_config_file as zoo_config_file

from d2kd.config.defaults import add_d2kd_config
from d2kd.model_zoo import find_config_file, get_config_file
from d2kd.modeling import build
from tests.common import ROOT

CONFIGS = ROOT / "configs" / "coco"

# FRS, released code: alpha on features, beta on dense scores, by detector.
FRS_WEIGHTS = {
    "faster_rcnn": (0.002, 0.1),
    "retinanet": (0.005, 0.02),
    "fcos": (0.01, 0.05),
    "gfl": (0.1, 0.05),
}
# PKD, released code: weight and FPN outputs, by detector; all of them 2x.
PKD = {
    "faster_rcnn": (6.0, ["p2", "p3", "p4", "p5"]),
    "retinanet": (10.0, ["p3", "p4", "p5", "p6"]),
}
# BCKD and CrossKD, released code: at all locations.
DENSE = {
    "LOSSES": ["cls", "reg"],
    "SCHEDULE.NAME": "constant",
    "SCHEDULE.WARMUP_ITERS": 0,
    "CLS.WEIGHT": 1.0,
    "CLS.WHERE": "uniform",
    "CLS.DISTANCE": "quality_focal",
    "CLS.NORMALIZER": "positives",
    "CLS.TEMPERATURE": 1.0,
    "REG.GATE": "none",
    "REG.WHERE": "teacher_score",
    "REG.NORMALIZER": "positives",
}
CROSSKD = {
    "retinanet": {
        "CROSS_HEAD": 1,
        "REDUCE_NORMALIZERS": False,
        "REG.WEIGHT": 1.0,
        "REG.DISTANCE": "giou",
    },
    "fcos": {
        "CROSS_HEAD": 2,
        "REDUCE_NORMALIZERS": True,
        "CLS.WEIGHT": 0.4,
        "CLS.NORMALIZER": "centerness",
        "REG.WEIGHT": 0.75,
        "REG.DISTANCE": "iou",
        "REG.NORMALIZER": "centerness",
    },
    "gfl": {
        "CROSS_HEAD": 1,
        "REDUCE_NORMALIZERS": True,
        # 4 of a sum over 17 bins.
        "REG.WEIGHT": 4.0 * 17,
        "REG.DISTANCE": "distribution_kl",
        "REG.TEMPERATURE": 1.0,
        "REG.NORMALIZER": "weights",
    },
}
PKD_BESIDE_CROSSKD = {"retinanet": 2.0, "fcos": 2.0, "gfl": 6.0}
COMMON = {
    "BCKD": {
        **DENSE,
        "CROSS_HEAD": 0,
        "REDUCE_NORMALIZERS": True,
        "REG.WEIGHT": 4.0,
        "REG.WHERE": "disagreement",
        "REG.DISTANCE": "giou",
    },
    "CrossKD": DENSE,
    "CrossKD+PKD": {
        **DENSE,
        "LOSSES": ["feature", "cls", "reg"],
        "FEATURE.LEVELS": [],
        "FEATURE.MASK": "uniform",
        "FEATURE.DISTANCE": "pearson",
        "FEATURE.ADAPTER": "none",
    },
    "FRS": {
        "LOSSES": ["feature", "cls"],
        "SCHEDULE.NAME": "constant",
        "SCHEDULE.WARMUP_ITERS": 500,
        "FEATURE.MASK": "richness",
        "FEATURE.DISTANCE": "squared",
        "FEATURE.CHANNELS": "sum",
        "FEATURE.ADAPTER": "3x3",
        "CLS.WHERE": "richness",
        "CLS.DISTANCE": "cross_entropy",
        "CLS.TEMPERATURE": 1.0,
    },
    "TAR": {
        "LOSSES": ["feature", "cls", "reg"],
        "SCHEDULE.NAME": "linear",
        "SCHEDULE.WARMUP_ITERS": 0,
        "FEATURE.MASK": "gaussian",
        "FEATURE.DISTANCE": "squared",
        "MASKS.GAUSSIAN.SIGMA2": 2.0,
        "CLS.WHERE": "positives",
        "CLS.DISTANCE": "cross_entropy",
        "CLS.TEMPERATURE": 1.0,
        "REG.GATE": "student",
        "REG.DISTANCE": "box_loss",
    },
    "SSIM": {
        "LOSSES": ["feature"],
        "SCHEDULE.NAME": "constant",
        "FEATURE.WEIGHT": 4.0,
        "FEATURE.MASK": "uniform",
        "FEATURE.DISTANCE": "ssim",
        "FEATURE.CHANNELS": "mean",
        "DISTANCES.SSIM.WINDOW": 11,
        "DISTANCES.SSIM.SIGMA": 1.5,
        "DISTANCES.SSIM.ALPHA": 1.0,
        "DISTANCES.SSIM.BETA": 1.0,
        "DISTANCES.SSIM.GAMMA": 1.0,
        "DISTANCES.SSIM.K1": 0.01,
        "DISTANCES.SSIM.K2": 0.03,
        "DISTANCES.SSIM.RANGE": 1.0,
        "DISTANCES.SSIM.SCALING": "image_channel",
    },
    "PKD": {
        "LOSSES": ["feature"],
        "SCHEDULE.NAME": "constant",
        "SCHEDULE.WARMUP_ITERS": 0,
        "FEATURE.MASK": "uniform",
        "FEATURE.DISTANCE": "pearson",
        "FEATURE.ADAPTER": "none",
    },
    "CWD": {
        "LOSSES": ["feature"],
        "FEATURE.WEIGHT": 10.0,
        "FEATURE.MASK": "uniform",
        "FEATURE.DISTANCE": "channel_kl",
        "DISTANCES.CHANNEL_KL.TEMPERATURE": 1.0,
    },
    "LD": {
        "LOSSES": ["reg"],
        # 0.25 of a sum over two images.
        "REG.WEIGHT": 0.5,
        "REG.GATE": "none",
        "REG.DISTANCE": "distribution_kl",
        "REG.TEMPERATURE": 10.0,
    },
}
PRESETS = [path for folder in COMMON for path in sorted((CONFIGS / folder).glob("*_from_*.yaml"))]
PRESETS_R101 = [path for path in PRESETS if "_from_R_101_FPN_" in path.name]
# Detectron2's "ImageNetPretrained/FAIR/X-101-32x8d" is trained on BGR pixels of these statistics.
X101_MEAN, X101_STD = [103.53, 116.28, 123.675], [57.375, 57.12, 58.395]


def _read(path):
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


def _detector(path):
    return re.match(r"faster_rcnn|retinanet|fcos|gfl", path.name)[0]


def _iterations(path):
    """One epoch is 7329 steps of 16 images: 1x is 90 000 of them."""
    return 90000 * int(re.search(r"_(\d)x", path.stem)[1])


def _expected(path):
    expected = dict(COMMON[path.parent.name])
    if path.parent.name == "FRS":
        weights = FRS_WEIGHTS[_detector(path)]
        expected.update(zip(("FEATURE.WEIGHT", "CLS.WEIGHT"), weights))
    if path.parent.name == "PKD":
        expected.update(zip(("FEATURE.WEIGHT", "FEATURE.LEVELS"), PKD[_detector(path)]))
    if path.parent.name.startswith("CrossKD"):
        expected.update(CROSSKD[_detector(path)])
    if path.parent.name == "CrossKD+PKD":
        expected["FEATURE.WEIGHT"] = PKD_BESIDE_CROSSKD[_detector(path)]
    return expected


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_preset(path):
    cfg, expected = _read(path), _expected(path)
    node = cfg.DISTILL
    found = {key: _value(node, key) for key in expected}
    assert found == expected and node.ENABLED
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (_iterations(path), 16)


@pytest.mark.parametrize("path", [path for path in PRESETS if path.parent.name == "PKD"])
def test_pkd_is_trained_2x(path):
    assert _read(path).SOLVER.MAX_ITER == 180000


@pytest.mark.parametrize("detector, schedule", [("retinanet", 90000), ("faster_rcnn", 180000)])
def test_the_teachers_of_the_released_frs_configs(detector, schedule):
    cfg = _read(CONFIGS / "FRS" / f"{detector}_R_50_from_R_101_FPN_2x_released.yaml")
    teacher = _read(get_config_file(cfg.DISTILL.TEACHER.CONFIG_FILE))
    assert cfg.SOLVER.MAX_ITER == 180000
    assert (teacher.SOLVER.MAX_ITER, teacher.MODEL.RESNETS.DEPTH) == (schedule, 101)


def test_frs_on_fcos_has_the_released_head_and_test_settings():
    cfg = _read(CONFIGS / "FRS" / "fcos_R_50_from_R_101_mmdet_FPN_2x.yaml")
    teacher = _read(get_config_file(cfg.DISTILL.TEACHER.CONFIG_FILE))
    for node in (cfg.MODEL.FCOS, teacher.MODEL.FCOS):
        assert (node.BOX_PREDICTION, node.CENTERNESS_BRANCH) == ("exp", "cls")
        assert (node.NMS_THRESH_TEST, node.SCORE_THRESH_TEST) == (0.5, 0.05)


def test_ssim_on_faster_rcnn_has_the_paper_teacher_and_adapter():
    cfg = _read(CONFIGS / "SSIM" / "faster_rcnn_R_50_from_cascade_X_101_FPN_1x.yaml")
    teacher = _read(get_config_file(cfg.DISTILL.TEACHER.CONFIG_FILE))
    assert cfg.DISTILL.FEATURE.ADAPTER == "1x1" and cfg.MODEL.RESNETS.DEPTH == 50
    assert teacher.MODEL.ROI_HEADS.NAME == "CascadeROIHeads"
    assert (teacher.MODEL.RESNETS.DEPTH, teacher.MODEL.RESNETS.NUM_GROUPS) == (101, 32)


@pytest.mark.parametrize("path", [path for path in PRESETS if "X_101" in path.name])
def test_x101_teachers_have_their_own_pixel_statistics(path, monkeypatch):
    student = _read(path)
    monkeypatch.setattr(build, "get_checkpoint_url", lambda name: name)
    teacher = build.read_teacher_config(student)
    assert "X-101-32x8d" in _own_weights(student)
    assert (student.INPUT.FORMAT, teacher.INPUT.FORMAT) == ("BGR", "BGR")
    assert (teacher.MODEL.PIXEL_MEAN, teacher.MODEL.PIXEL_STD) == (X101_MEAN, X101_STD)
    assert (student.MODEL.PIXEL_MEAN, student.MODEL.PIXEL_STD) == (X101_MEAN, [1.0, 1.0, 1.0])
    assert not teacher.MODEL.RESNETS.STRIDE_IN_1X1


def _own_weights(student):
    """What the teacher itself was trained from."""
    name = student.DISTILL.TEACHER.CONFIG_FILE
    return _read(find_config_file(name) or zoo_config_file(name)).MODEL.WEIGHTS


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/gfl_*.yaml")), ids=lambda path: path.stem)
def test_gfl_is_trained_at_800_in_1x_and_at_480_to_800_in_2x(path):
    node = _read(path).INPUT
    sizes = (800,) if path.stem.endswith("1x") else (480, 800)
    assert node.MIN_SIZE_TRAIN == sizes and node.MAX_SIZE_TRAIN == 1333
    assert node.MIN_SIZE_TRAIN_SAMPLING == ("choice" if len(sizes) == 1 else "range")


@pytest.mark.parametrize("path", sorted((CONFIGS.parent / "voc").glob("*/*.yaml")), ids=str)
def test_voc_presets(path):
    cfg = _read(path)
    both = cfg.SOLVER.MAX_ITER == 18000
    train = ("voc_2007_trainval", "voc_2012_trainval") if both else ("voc_2007_trainval",)
    assert cfg.DATASETS.TRAIN == train and cfg.DATASETS.TEST == ("voc_2007_test",)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 20
    assert cfg.MODEL.RESNETS.DEPTH == (101 if path.parent.name == "teacher" else 50)
    expected = COMMON.get(path.parent.name, {})
    assert {key: _value(cfg.DISTILL, key) for key in expected} == expected


def _value(node, key):
    for part in key.split("."):
        node = node[part]
    return node


# MODEL_ZOO.md's rows of the papers' own numbers: the row's name, its baseline, and the rest.
PAPER_ROWS = {
    "*paper*, COCO, Faster R-CNN R101 (38.5) -> R50": ["36.3", "39.0"],
    "*paper*, VOC07 AP50, Faster R-CNN R101 (74.3) -> R50": ["70.0", "74.5"],
    "*paper*, COCO, RetinaNet 2x R101 (38.9) -> R50": ["37.4", "39.7"],
    "*paper*, COCO, Faster R-CNN 1x R101 (39.4) -> R50": ["37.4", "39.5"],
    "*paper*, COCO, FCOS 2x R101 (40.8) -> R50": ["38.5", "40.9"],
    "*paper*, COCO, GFL 1x R101 (44.9) -> R50": ["40.2", "43.6"],
    "*paper*, COCO, GFL 2x R101 (44.9) -> R50": ["42.9", "44.7"],
    "*paper*, COCO, RetinaNet R101 -> R50": ["36.4", "40.1"],
    "*paper*, COCO, Faster R-CNN Cascade X101 -> R50, 1x1 adapter": ["37.4", "40.9"],
    "*paper*, the same without adapter": ["37.4", "39.8"],
    "*paper* of FRS, COCO, 1x R101 -> R50": ["40.2", "43.6"],
    "*paper* of LD, COCO, 1x R101 -> R50": ["40.1", "", "42.1"],
    "*paper* of LD, its first release": ["40.1", "", "41.1"],
    "*paper*, COCO, RetinaNet 2x R101 -> R50": ["37.4", "", "39.7", "39.8"],
    "*paper*, COCO, FCOS 2x R101 -> R50": ["38.5", "", "41.1", "41.3"],
}


def test_the_papers_numbers_in_the_model_zoo():
    rows = [line.split("|")[1:] for line in (ROOT / "MODEL_ZOO.md").open()]
    rows = [[cell.strip() for cell in row] for row in rows if row and "*paper*" in row[0]]
    assert {row[0] for row in rows} == set(PAPER_ROWS)
    for name, *cells in rows:
        assert cells[: len(PAPER_ROWS[name])] == PAPER_ROWS[name], name


def test_presets_in_the_model_zoo_exist():
    names = re.findall(r"`((?:coco|voc)/\w+/\w+)`", (ROOT / "MODEL_ZOO.md").read_text())
    assert len(names) > 15
    assert [name for name in names if not find_config_file(f"{name}.yaml")] == []


def test_every_paper_is_there():
    assert {path.parent.name for path in PRESETS_R101} == set(COMMON)
    frs = {_detector(path) for path in PRESETS if path.parent.name == "FRS"}
    assert frs == set(FRS_WEIGHTS)
    for method in ("BCKD", "CrossKD", "CrossKD+PKD"):
        found = {
            p.name.replace("_R_50_from_R_101_FPN", "") for p in PRESETS if p.parent.name == method
        }
        assert found == {"retinanet_2x.yaml", "fcos_2x.yaml", "gfl_1x.yaml"}
