# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The COCO presets hold what the papers and their released code publish, value by value."""

import pytest
from detectron2.config import get_cfg

from d2kd.config.defaults import add_d2kd_config
from tests.common import ROOT

CONFIGS = ROOT / "configs" / "coco"

# FRS, released code: alpha on features, beta on dense scores, by detector.
FRS_WEIGHTS = {
    "faster_rcnn": (0.002, 0.1),
    "retinanet": (0.005, 0.02),
    "fcos": (0.01, 0.05),
    "gfl": (0.1, 0.05),
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
        "FEATURE.WEIGHT": 6.0,
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
PRESETS = [
    path for folder in COMMON for path in sorted((CONFIGS / folder).glob("*_from_R_101_FPN_*.yaml"))
]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_preset(path):
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_file(str(path))
    expected, detector = dict(COMMON[path.parent.name]), path.name.split("_R_50")[0]
    if path.parent.name == "FRS":
        expected.update(zip(("FEATURE.WEIGHT", "CLS.WEIGHT"), FRS_WEIGHTS[detector]))
    if path.parent.name.startswith("CrossKD"):
        expected.update(CROSSKD[detector])
    if path.parent.name == "CrossKD+PKD":
        expected["FEATURE.WEIGHT"] = PKD_BESIDE_CROSSKD[detector]
    node = cfg.DISTILL
    found = {key: _value(node, key) for key in expected}
    assert found == expected and node.ENABLED
    # One epoch is 7329 steps of 16 images: 1x is 90 000 of them.
    schedule = path.stem.rsplit("_", 1)[1]
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (
        {"1x": 90000, "2x": 180000}[schedule],
        16,
    )


def _value(node, key):
    for part in key.split("."):
        node = node[part]
    return node


def test_every_paper_is_there():
    assert {path.parent.name for path in PRESETS} == set(COMMON)
    frs = {path.name.split("_R_50")[0] for path in PRESETS if path.parent.name == "FRS"}
    assert frs == set(FRS_WEIGHTS)
    for method in ("BCKD", "CrossKD", "CrossKD+PKD"):
        found = {
            p.name.replace("_R_50_from_R_101_FPN", "") for p in PRESETS if p.parent.name == method
        }
        assert found == {"retinanet_2x.yaml", "fcos_2x.yaml", "gfl_1x.yaml"}
