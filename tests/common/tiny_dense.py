# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Dense detectors small enough for tests, and a batch for them."""

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from d2kd.config.defaults import add_d2kd_config

K = 5
DETECTORS = ["RetinaNet", "FCOS", "GFL"]
_BACKBONE = {
    "MODEL.DEVICE": "cpu",
    # With GN on every level, features are of order 1 although nothing is trained.
    "MODEL.BACKBONE.NAME": "build_fcos_resnet_fpn_backbone",
    "MODEL.FPN.NORM": "GN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 32,
}


def dense_cfg(name, *opts):
    """A dense detector of this MODEL.META_ARCHITECTURE, thin and with K classes."""
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = name
    cfg.merge_from_list([part for item in _BACKBONE.items() for part in item])
    # Three anchors per location (one size, three ratios); RetinaNet alone reads this.
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL[name.upper()].NUM_CLASSES = K
    cfg.MODEL[name.upper()].NUM_CONVS = 1
    cfg.merge_from_list(list(opts))
    return cfg


def build_dense(name, *opts, seed=0):
    """``dense_cfg(name, *opts)`` in training mode; no two locations or classes look alike."""
    torch.manual_seed(seed)
    model = build_model(dense_cfg(name, *opts)).train()
    for layer in (model.head.cls_score, model.head.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.1)
        torch.nn.init.normal_(layer.bias, std=1.0)
    return model


def make_batch(boxes=([[8, 12, 60, 90], [30, 40, 120, 100]], [[5, 5, 40, 30]])):
    """One image for each list of boxes, of different widths; classes 1, 2, ..."""
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "image": torch.randint(
                0, 256, (3, 128, 96 + 16 * i), generator=generator, dtype=torch.uint8
            ),
            "instances": Instances(
                (128, 96 + 16 * i),
                gt_boxes=Boxes(torch.tensor(b, dtype=torch.float32).view(-1, 4)),
                gt_classes=torch.arange(len(b)) + 1,
            ),
        }
        for i, b in enumerate(boxes)
    ]
