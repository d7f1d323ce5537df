# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""VIS_PERIOD: a student under a teacher draws the pictures that it draws alone."""

from functools import partial

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from d2kd.modeling import FrozenTeacher
from d2kd.modeling.paired_forward.dense import forward_pair_dense
from d2kd.modeling.paired_forward.rcnn import forward_pair_rcnn
from d2kd.modeling.paired_forward.registry import RequiredOutputs
from tests.common import tiny_dense
from tests.common.helpers import build_pair, make_batch

FEATURES = RequiredOutputs(frozenset({"features"}), "student")


def draw(forward, start=0):
    """(what forward returns, its pictures by name) at this iteration."""
    torch.manual_seed(5)
    np.random.seed(5)  # Detectron2 draws the colours of the boxes from it
    with EventStorage(start) as storage:
        result = forward()
        return result, {name: image for name, image, _ in storage._vis_data}


def test_rcnn_draws_what_stock_draws():
    stock, student, teacher = build_pair("VIS_PERIOD", 2)
    batch = make_batch()
    losses, expected = draw(lambda: stock(batch))
    (paired, _), found = draw(lambda: forward_pair_rcnn(student, teacher, batch, FEATURES))
    assert list(found) == list(expected) and len(found) == 1
    for name, image in expected.items():
        assert np.array_equal(image, found[name])
    assert all(torch.equal(paired[name], losses[name]) for name in losses)
    for one in (lambda: stock(batch), lambda: forward_pair_rcnn(student, teacher, batch, FEATURES)):
        assert not draw(one, start=3)[1], "3 is no multiple of 2"


@pytest.mark.parametrize("period, pictures", [(0, 0), (1, 1)])
def test_retinanet_draws_its_best_detections(period, pictures):
    cfg = tiny_dense.dense_cfg("RetinaNet")
    cfg.VIS_PERIOD = period
    teacher = FrozenTeacher(tiny_dense.build_dense("RetinaNet", seed=1))
    batch = tiny_dense.make_batch()
    results = []
    for student in (build_model(cfg).train(), tiny_dense.build_dense("RetinaNet")):
        student.load_state_dict(tiny_dense.build_dense("RetinaNet").state_dict())
        results.append(draw(partial(forward_pair_dense, student, teacher, batch, FEATURES)))
    (drawn, _), (plain, _) = (result for result, _ in results)
    assert all(torch.equal(drawn[name], plain[name]) for name in plain)
    images = list(results[0][1].values())
    assert len(images) == pictures and not results[1][1]
    # The ground truth stands above the detections, in the size of the first image.
    assert all(image.shape == (3, 2 * 128, 96) for image in images)
