# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""LazyConfig files of tiny detectors, and a backbone that pads to a square as ViTDet's does."""

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from omegaconf import OmegaConf
from torch import nn

from tests.common.helpers import plain_cfg, spread

LEVELS = {"p3": 8, "p4": 16}
SQUARE = 96


class ToyBackbone(Backbone):
    """Two levels of a few convolutions.

    Attributes:
        padding_constraints: as of Detectron2 main's SimpleFeaturePyramid.
    """

    def __init__(self, width=8, square=0, multiple=16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.p4 = nn.Conv2d(width, width, 3, 2, 1)
        self.width, self.square, self.multiple = width, square, multiple

    @property
    def size_divisibility(self):
        return self.multiple

    @property
    def padding_constraints(self):
        return {"square_size": self.square}

    def output_shape(self):
        return {x: ShapeSpec(channels=self.width, stride=s) for x, s in LEVELS.items()}

    def forward(self, x):
        p3 = self.stem(x).relu()
        return {"p3": p3, "p4": self.p4(p3)}


def build_tiny(opts=()):
    """The detector of helpers.py, as a LazyConfig may build it: by a function."""
    return build_model(plain_cfg(*OmegaConf.to_container(opts)))


def write_lazy_teacher(folder, weights, *opts):
    """A .py that builds the detector of helpers.py.

    Args:
        weights: train.init_checkpoint.
        opts: keys of that detector.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "teacher.py"
    path.write_text(
        "from detectron2.config import LazyCall as L\n"
        "from tests.common.lazy_files import build_tiny\n"
        f"model = L(build_tiny)(opts={list(opts)!r})\n"
        f"train = dict(init_checkpoint={str(weights)!r})\n"
    )
    return path


TOY = """
import torch
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from tests.common.lazy_files import ToyBackbone

model = L(RetinaNet)(
    backbone=L(ToyBackbone)(width={width}, **{backbone}),
    head=L(RetinaNetHead)(
        input_shape=[ShapeSpec(channels={width})] * 2,
        num_classes="${{..num_classes}}",
        conv_dims=[{width}],
        num_anchors=3,
    ),
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[16], [32]], aspect_ratios=[0.5, 1.0, 2.0], strides=[8, 16], offset=0.0
    ),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    anchor_matcher=L(Matcher)(
        thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
    ),
    num_classes={classes},
    head_in_features=["p3", "p4"],
    pixel_mean={mean},
    pixel_std=[57.0, 58.0, 59.0],
    input_format="{order}",
)
"""


def toy_text(width=8, classes=4, order="BGR", mean=(103.53, 116.28, 123.675), **backbone):
    """The ``model`` of a LazyConfig file: RetinaNet on ToyBackbone, without yaml keys."""
    values = {"width": width, "classes": classes, "order": order, "mean": list(mean)}
    return TOY.format(**values, backbone=backbone)


def write_toy(folder, name="teacher", seed=7, **kwargs):
    """A toy's file and its (random) checkpoint; kwargs: of ``toy_text``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(toy_text(**kwargs) + f"train = dict(init_checkpoint='{folder}/{name}.pth')\n")
    torch.manual_seed(seed)
    model = spread(instantiate(LazyConfig.load(str(path)).model))
    torch.save({"model": model.state_dict()}, folder / f"{name}.pth")
    return path
