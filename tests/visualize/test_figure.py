# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a figure holds for each kind of detector, and that it becomes a picture."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from matplotlib import pyplot

from d2kd.visualize import draw_figure, to_pixels, view_image, view_student
from d2kd.visualize.map_panels import scale_of
from tests.common.architectures import ARCHITECTURES, whole_batch
from tests.common.helpers import build_distiller, distill_cfg, write_teacher


def view(distiller, batch, step, image=0, times=("at its start",)):
    students = [view_student(name, distiller, batch, step, image) for name in times]
    keys = dict(strides=step.strides, image_format="BGR", classes=["ring", "box"])
    return view_image("a.png", distiller, batch[image], students, **keys)


def titles(figure):
    """Of the rows and of the panels."""
    found = [x.get_suptitle() for x in figure.subfigs if x.get_suptitle()]
    return found + [ax.get_title() for ax in figure.axes if ax.get_title()]


@pytest.mark.parametrize("detector", ["GeneralizedRCNN", "RetinaNet", "FCOS", "GFL"])
def test_every_row_is_there(take_step, detector):
    figure = draw_figure(view(*take_step(detector, DISTILL__REG__GATE="student")))
    assert [x.get_suptitle() for x in figure.subfigs] == [
        "",
        "mask: gaussian (feature)",
        "teacher: feature energy (mean of the squared channels)",
        "student at its start: feature energy (mean of the squared channels), after the adapter",
        'student at its start: distance "squared" to the teacher\'s features',
        "student at its start: regions",
    ]
    found = titles(figure)
    assert "ground truth (2)" in found and 'gate "student"' in found
    assert [x for x in found if x.startswith("p3, stride")] == ["p3, stride 8"] * 4
    pixels = to_pixels(figure)
    assert pixels.shape[1] == 1300 and 1500 < pixels.shape[0] < 4000
    assert pyplot.get_fignums() == [], "nothing stays in pyplot"


def test_two_times_share_the_scale_and_the_mask(take_step):
    figure = draw_figure(view(*take_step(), times=("at its start", "at a.pth")))
    rows = [x.get_suptitle() for x in figure.subfigs]
    assert sum("mask" in x for x in rows) == 1
    assert sum("distance" in x for x in rows) == sum("regions" in x for x in rows) == 2
    for word in ("feature energy", "distance"):
        parts = [x for x in figure.subfigs if word in x.get_suptitle()]
        scales = {(i.norm.vmin, i.norm.vmax) for x in parts for ax in x.axes for i in ax.images}
        assert len(scales) == 1


def test_pixels_are_those_of_the_image_in_rgb(take_step):
    distiller, batch, step = take_step()
    found = view(distiller, batch, step, image=1).pixels
    assert (found == batch[1]["image"].flip(0).permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("name", ["rpn", "semantic"])
def test_architectures_without_regions_leave_them_out(tmp_path, name):
    files = write_teacher(tmp_path / name, *ARCHITECTURES[name])
    keys = ["DISTILL.LOSSES", ["feature"], "DISTILL.FEATURE.MASK", "uniform"]
    distiller = build_distiller(distill_cfg(files, *ARCHITECTURES[name], *keys))
    batch = whole_batch()
    with torch.no_grad(), EventStorage():
        parts = (distiller.student, distiller.teacher, batch, distiller.required)
        _, step = distiller.forward_pair(*parts)
        figure = draw_figure(view(distiller, batch, step))
    rows = [x.get_suptitle() for x in figure.subfigs]
    assert sum("energy" in x for x in rows) == 2 and sum("distance" in x for x in rows) == 1
    assert not [x for x in rows if "regions" in x or "mask" in x]
    assert to_pixels(figure).std() > 1


def test_an_image_without_boxes_is_drawn(take_step):
    distiller, batch, step = take_step()
    empty = batch[0]["instances"][:0]
    batch = [{**batch[0], "instances": empty}, batch[1]]
    with torch.no_grad(), EventStorage():
        parts = (distiller.student, distiller.teacher, batch, distiller.required)
        _, step = distiller.forward_pair(*parts)
    found = titles(draw_figure(view(distiller, batch, step)))
    assert "ground truth (0)" in found and "regions (positives): 0, 0 pass the gate" in found


@pytest.mark.parametrize("values", [[0.0, 0.0], [2.0, 2.0], [-1.0, 3.0], [float("nan")] * 2, []])
def test_any_map_has_a_scale(values):
    scale = scale_of([{"p2": torch.tensor([values])}])
    assert scale.vmin < scale.vmax
