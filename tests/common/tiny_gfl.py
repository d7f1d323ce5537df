# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A GFL small enough for tests, and what to run it on."""

import copy
import functools

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from d2kd.config.gfl import add_gfl_config
from d2kd.modeling.meta_arch.gfl.gfl import GFL
from tests.common import ROOT

BASE = str(ROOT / "configs/_base_/detectors/gfl.yaml")
TINY = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.GFL.NUM_CONVS": 1,
    "MODEL.GFL.NUM_CLASSES": 5,
}


def build_gfl(**overrides) -> GFL:
    """A tiny GFL for CPU; overrides are config keys."""
    cfg = get_cfg()
    add_gfl_config(cfg)
    cfg.merge_from_file(BASE)
    settings = {**TINY, **overrides}
    cfg.merge_from_list([part for item in settings.items() for part in item])
    torch.manual_seed(0)
    return build_model(cfg)


@functools.cache
def _spread_gfl() -> GFL:
    model = build_gfl()
    # All locations are alike before training: tell them and their bins apart.
    nn.init.normal_(model.head.cls_score.weight, std=0.5)
    nn.init.normal_(model.head.bbox_pred.weight, std=0.5)
    return model


def spread_gfl() -> GFL:
    """A tiny GFL in training mode whose outputs differ between locations and edges."""
    model = copy.deepcopy(_spread_gfl()).train()
    torch.manual_seed(1)  # what a test draws next must not depend on the tests before it
    return model


def make_batch(boxes=([[10, 12, 60, 90], [30, 40, 120, 100]], [[5, 5, 40, 30]]), size=(128, 96)):
    """Images with these boxes (xyxy, pixels), labelled 2, 3, ... in each image."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8),
            "instances": Instances(
                size,
                gt_boxes=Boxes(torch.tensor(b, dtype=torch.float32).reshape(-1, 4)),
                gt_classes=torch.arange(len(b)) + 2,
            ),
        }
        for b in boxes
    ]


def head_outputs(model: GFL, batch):
    """The head's input maps and its (logits, bins) maps."""
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    maps = [features[name] for name in model.head_in_features]
    return maps, model.head(maps)
