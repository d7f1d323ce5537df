# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The regions that are drawn are the losses' own, each on its image."""

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou

from d2kd.losses.regression import accepted_regions
from d2kd.visualize.box_panels import pairs_of
from d2kd.visualize.region_view import view_regions

DETECTORS = ["GeneralizedRCNN", "RetinaNet", "FCOS", "GFL"]


@pytest.mark.parametrize("detector", DETECTORS)
def test_regions_lie_on_their_image(take_step, detector):
    distiller, batch, step = take_step(detector)
    views = [view_regions(distiller.distill_losses, step, i) for i in range(len(batch))]
    assert sum(len(x.regions) for x in views) == len(step.regions) > 0
    for view, sample in zip(views, batch):
        known = {tuple(x) for x in sample["instances"].gt_boxes.tensor.tolist()}
        assert len(view.truth) and {tuple(x) for x in view.truth.tolist()} <= known


@pytest.mark.parametrize("gate", ["student", "proposal"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_what_passes_is_what_the_loss_accepts(take_step, detector, gate):
    distiller, batch, step = take_step(detector, DISTILL__REG__GATE=gate)
    views = [view_regions(distiller.distill_losses, step, i) for i in range(len(batch))]
    assert sum(int(x.accepted.sum()) for x in views) == accepted_regions(step, gate).sum()
    for view in views:
        assert view.gate == gate
        assert torch.equal(view.iou(view.teacher) > view.iou(view.rival), view.accepted)
        assert view.rival is (view.student if gate == "student" else view.regions)


def test_boxes_are_decoded_from_each_detector(take_step):
    distiller, _, step = take_step()
    view = view_regions(distiller.distill_losses, step, 0)
    rows = step.region_image == 0
    for boxes, outputs in ((view.student, step.student), (view.teacher, step.teacher)):
        expected = step.box_coder.decode(outputs.deltas, step.regions)[rows]
        torch.testing.assert_close(boxes, expected)


def test_a_pair_is_shown_for_each_object(take_step):
    distiller, batch, step = take_step()
    view = view_regions(distiller.distill_losses, step, 0)
    rows = pairs_of(view)
    assert len(rows) == len(batch[0]["instances"]) == 2
    gap = (view.iou(view.teacher) - view.iou(view.student)).abs()
    for row in rows:
        same = (view.truth == view.truth[row]).all(dim=1)
        assert gap[row] == gap[same].max()


def test_iou_is_that_of_each_row(take_step):
    distiller, _, step = take_step()
    view = view_regions(distiller.distill_losses, step, 0)
    expected = pairwise_iou(Boxes(view.teacher), Boxes(view.truth)).diagonal()
    torch.testing.assert_close(view.iou(view.teacher), expected)


def test_without_boxes_of_the_teacher_regions_alone_are_left(take_step):
    distiller, _, step = take_step(DISTILL__LOSSES=["cls"])
    view = view_regions(distiller.distill_losses, step, 0)
    assert len(view.regions) and view.teacher is None and view.accepted is None


@pytest.mark.parametrize("detector", ["GeneralizedRCNN", "RetinaNet"])
def test_no_view_where_no_loss_reads_a_region(take_step, detector):
    distiller, _, step = take_step(detector, DISTILL__LOSSES=["feature"])
    assert view_regions(distiller.distill_losses, step, 0) is None
