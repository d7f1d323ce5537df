# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The thin other side of a pair, and the keys of a config of the zoo that make a step short."""

from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg

from d2kd.config.defaults import add_d2kd_config, get_value
from d2kd.config.detectors import find_detector

__all__ = ["FEW", "PARTNERS", "THIN", "number_of_classes", "read", "read_partner"]

# The other side of a pair, by the levels of the config's backbone.
PARTNERS = {
    "fpn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "c4": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "dc5": "COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "fcos": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
}
THIN = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
}
# Keys of all configs that make a step short.
FEW = {
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
}


def read(name: str, opts: dict[str, object]) -> CfgNode:
    """A config of the zoo, on the CPU, with the keys of ``opts``."""
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(name))
    cfg.merge_from_list([part for item in {**FEW, **opts}.items() for part in item])
    cfg.MODEL.DEVICE, cfg.DISTILL.ENABLED = "cpu", True
    cfg.DISTILL.REG.GATE, cfg.DISTILL.FEATURE.MASK = "none", "uniform"
    return cfg


def read_partner(kind: str, classes: int) -> CfgNode:
    """The thin config for a kind of PARTNERS."""
    cfg = read(PARTNERS[kind], THIN)
    if kind == "fcos":
        cfg.MODEL.META_ARCHITECTURE = "FCOS"
        cfg.MODEL.BACKBONE.NAME = "build_fcos_resnet_fpn_backbone"
    group = {"retinanet": "RETINANET", "fcos": "FCOS"}.get(kind, "ROI_HEADS")
    cfg.MODEL[group].NUM_CLASSES = classes
    return cfg


def number_of_classes(cfg: CfgNode) -> int:
    row = find_detector(cfg)
    return get_value(cfg, row.num_classes_key) if row and row.num_classes_key else 80
