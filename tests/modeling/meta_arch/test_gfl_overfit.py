# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""GFL learns eight pictures by heart: assignment, losses and decoding agree with each other."""

import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import COCOEvaluator

import d2kd.data  # noqa: F401  registers the shapes
from tests.common.tiny_gfl import build_gfl

ITERATIONS = 300


@pytest.fixture
def one_thread():
    """So small a network is several times faster on one core than on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def eight_shapes():
    """The name of a dataset of the first eight training pictures."""
    name, source = "gfl_overfit_shapes", "d2kd_shapes_train"
    dicts = DatasetCatalog.get(source)[:8]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=MetadataCatalog.get(source).thing_classes)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def _train(model, batch):
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=ITERATIONS, pct_start=0.1
    )
    for _ in range(ITERATIONS):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()
        schedule.step()


def test_eight_images_are_learnt_from_scratch(one_thread, eight_shapes, tmp_path):
    model = build_gfl(
        **{
            "MODEL.RESNETS.NORM": "BN",
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
            "MODEL.BACKBONE.FREEZE_AT": 0,
            "MODEL.FPN.OUT_CHANNELS": 64,
            "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
            "MODEL.GFL.NUM_CONVS": 2,
            "MODEL.GFL.NUM_CLASSES": 6,
        }
    )
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    batch = [mapper(x) for x in DatasetCatalog.get(eight_shapes)]
    _train(model, batch)
    evaluator = COCOEvaluator(
        eight_shapes, ("bbox",), False, output_dir=str(tmp_path), use_fast_impl=False
    )
    evaluator.reset()
    with torch.no_grad():
        evaluator.process(batch, model.eval()(batch))
    assert evaluator.evaluate()["bbox"]["AP50"] > 90
