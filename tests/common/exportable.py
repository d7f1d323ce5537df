# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Every detector that can be exported, small enough for tests, and images for it."""

import functools

import torch
from detectron2.modeling import build_model

from d2kd.config.student import student_config
from tests.common.helpers import plain_cfg, spread
from tests.common.tiny_dense import build_dense, dense_cfg

DETECTORS = ["Faster R-CNN", "Mask R-CNN", "RetinaNet", "FCOS", "GFL"]
# Of several sizes, below and above what graphs are recorded with.
SIZES = [(150, 140), (140, 260), (224, 130)]


def exportable_cfg(name, *opts):
    """A config whose detector finds much in noise."""
    if name.endswith("R-CNN"):
        return plain_cfg("MODEL.MASK_ON", name == "Mask R-CNN", *_small_masks(), *opts)
    return dense_cfg(name, "MODEL.WEIGHTS", "", *opts)


def _small_masks():
    return ["MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1]


@functools.cache
def exportable(name):
    """The detector of ``exportable_cfg`` in eval mode; no two regions are answered alike."""
    torch.manual_seed(0)
    if name.endswith("R-CNN"):
        return spread(build_model(student_config(exportable_cfg(name)))).eval()
    return build_dense(name).eval()


def noise(*sizes, seed=5):
    """Records with an image of noise each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {"image": torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)}
        for size in sizes
    ]


def detect(model, records):
    """The stock detector's instances, in pixels of the images."""
    with torch.no_grad():
        return [x["instances"] for x in model(records)]
