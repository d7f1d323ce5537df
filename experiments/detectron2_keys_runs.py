# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Tiny detectors, data and runs: experiments.detectron2_keys records what they read."""

import pickle
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from PIL import Image

from d2kd.config.defaults import add_d2kd_config
from d2kd.config.detectors import is_known_dense
from d2kd.engine import DistillTrainer

__all__ = ["DETECTORS", "detector_cfg", "evaluate", "train"]

_RCNN = """
MODEL:
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  RESNETS: {DEFORM_ON_PER_STAGE: [False, False, False, False]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"], CONV_DIMS: [-1]}
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"], NUM_CLASSES: 1}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 1, FC_DIM: 8, POOLER_RESOLUTION: 3}
"""
_DENSE = """
MODEL:
  BACKBONE: {NAME: "build_fcos_resnet_fpn_backbone"}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
"""
# "GeneralizedRCNN with ..." are further parts of one meta-architecture.
DETECTORS = {
    "GeneralizedRCNN": _RCNN,
    "GeneralizedRCNN with masks": _RCNN + "  MASK_ON: True\n",
    "GeneralizedRCNN with keypoints": _RCNN
    + "  KEYPOINT_ON: True\n  ROI_KEYPOINT_HEAD: {NUM_KEYPOINTS: 2, CONV_DIMS: [8]}\n",
    "GeneralizedRCNN with cascade": _RCNN.replace("StandardROIHeads", "CascadeROIHeads").replace(
        "NUM_FC: 1", "CLS_AGNOSTIC_BBOX_REG: True, NUM_FC: 1"
    ),
    "GeneralizedRCNN with rotated boxes": _RCNN.replace(
        "CONV_DIMS: [-1]", "BBOX_REG_WEIGHTS: [1, 1, 1, 1, 1]"
    )
    .replace("{SIZES", "{NAME: RotatedAnchorGenerator, SIZES")
    .replace(
        "POOLER_RESOLUTION",
        "BBOX_REG_WEIGHTS: [10, 10, 5, 5, 1], POOLER_TYPE: ROIAlignRotated, POOLER_RESOLUTION",
    )
    .replace("StandardROIHeads", "RROIHeads")
    + "  PROPOSAL_GENERATOR: {NAME: RRPN}\n",
    "GeneralizedRCNN with deformable convolutions": _RCNN.replace(
        "[False, False, False, False]", "[False, False, False, True]"
    ),
    "ProposalNetwork": _RCNN,
    "PanopticFPN": _RCNN + "  MASK_ON: True\n",
    "SemanticSegmentor": _RCNN,
    "RetinaNet": _DENSE.replace("fcos", "retinanet"),
    "FCOS": _DENSE,
    "GFL": _DENSE,
}
_THIN = """
MODEL:
  DEVICE: "cpu"
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"], OUT_CHANNELS: 32}
  RESNETS:
    NORM: "BN"
    STEM_OUT_CHANNELS: 8
    RES2_OUT_CHANNELS: 16
    WIDTH_PER_GROUP: 4
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
"""
# Every switch that lets further keys be read.
_SWITCHES = """
DATASETS: {TRAIN: ["keys"], TEST: ["keys"]}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, CROP: {ENABLED: True}}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 1, STEPS: [], CLIP_GRADIENTS: {ENABLED: True}}
TEST: {PRECISE_BN: {ENABLED: True, NUM_ITER: 1}, KEYPOINT_OKS_SIGMAS: [0.1, 0.1], EVAL_PERIOD: 1}
VERSION: 2
"""


def detector_cfg(name: str, folder: Path | None = None) -> CfgNode:
    """The config of one of DETECTORS, with all switches on where there is a folder for its data."""
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = name.partition(" ")[0]
    for text in (_THIN, DETECTORS[name]):
        cfg.merge_from_other_cfg(cfg.load_cfg(text))
    if is_known_dense(cfg):
        cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    if folder is not None:
        cfg.merge_from_other_cfg(cfg.load_cfg(_SWITCHES))
        cfg.OUTPUT_DIR = str(folder / "out")
        proposals = str(_write_data(folder))
        cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = (proposals,)
    return cfg


def _write_data(folder: Path) -> Path:
    """Register "keys", four images with a box and two keypoints each; the file of proposals."""
    item = {"bbox": [8, 8, 50, 50], "bbox_mode": 0, "category_id": 0, "iscrowd": 0}
    item["keypoints"] = [10.0, 10.0, 2, 30.0, 30.0, 2]
    records = []
    for number in range(4):
        path = folder / f"{number}.png"
        Image.fromarray(np.full((64, 64, 3), 50 * number, dtype=np.uint8)).save(path)
        records.append({"file_name": str(path), "image_id": number, "height": 64, "width": 64})
        records[-1]["annotations"] = [item]
    if "keys" in DatasetCatalog:
        DatasetCatalog.remove("keys")
        MetadataCatalog.remove("keys")
    DatasetCatalog.register("keys", lambda: [dict(record) for record in records])
    MetadataCatalog.get("keys").set(
        evaluator_type="coco",
        thing_classes=["thing"],
        keypoint_names=["a", "b"],
        keypoint_flip_map=[],
    )
    boxes = [np.array([[8.0, 8, 50, 50], [0, 0, 30, 30]])] * 4
    content = {"ids": list(range(4)), "boxes": boxes, "bbox_mode": 0}
    content["objectness_logits"] = [np.zeros(2)] * 4
    (folder / "proposals.pkl").write_bytes(pickle.dumps(content))
    return folder / "proposals.pkl"


class _Arguments:
    """What ``default_setup`` reads of the command line."""

    config_file, eval_only = "", False


def train(cfg: CfgNode) -> None:
    """One iteration with precise statistics; keypoints of an untrained detector are not finite."""
    cfg.DATASETS.TEST = ()
    default_setup(cfg, _Arguments())
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


def evaluate(cfg: CfgNode) -> None:
    """An evaluation alone; test-time augmentation knows no proposals of a file."""
    cfg.MODEL.KEYPOINT_ON = False
    if not cfg.MODEL.LOAD_PROPOSALS:
        cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES = True, (64,)
    DistillTrainer.test_all(cfg, DistillTrainer.build_model(cfg))
