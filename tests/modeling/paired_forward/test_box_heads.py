# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a teacher's box heads say of the student's regions, whatever their class."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import cascade_rcnn
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

from d2kd.modeling import FrozenTeacher
from d2kd.modeling.paired_forward.box_coders import DeltaBoxCoder, box_coder_of
from d2kd.modeling.paired_forward.box_heads import (
    Regions,
    box_predictions,
    deltas_of_regions,
    first_predictor,
)
from d2kd.modeling.paired_forward.rcnn import forward_pair_rcnn
from d2kd.modeling.paired_forward.registry import RequiredOutputs
from tests.common.architectures import WITH_BOXES, whole_batch
from tests.common.helpers import K, build_pair, plain_cfg, spread

EVERYTHING = frozenset({"features", "dense_logits", "logits", "deltas"})
WEIGHTS = ["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (5.0, 5.0, 3.0, 3.0)]


def _teacher(name, *opts, seed=2):
    torch.manual_seed(seed)
    model = spread(build_model(plain_cfg(*WITH_BOXES[name], *opts)))
    return FrozenTeacher(model)


def _regions(teacher, coder=None):
    """Six boxes of two images, some of which their deltas carry over the edge."""
    batch = whole_batch()
    boxes = [[[8, 12, 50, 60], [4, 4, 20, 30], [40, 40, 64, 64]], [[30, 20, 60, 44]] * 3]
    labels = torch.tensor([0, 1, 2, 0, 3, 1])
    sizes = [tuple(x["image"].shape[-2:]) for x in batch]
    boxes = [Boxes(torch.tensor(x, dtype=torch.float)) for x in boxes]
    owner, name = first_predictor(teacher.model.roi_heads)
    return batch, Regions(boxes, labels, sizes, coder or box_coder_of(getattr(owner, name)))


def _predict(teacher, regions, batch):
    with torch.no_grad():
        features = teacher.features(batch)
        return box_predictions(teacher.model.roi_heads, teacher, features, regions)


@torch.no_grad()
def test_a_cascade_answers_as_its_own_inference(monkeypatch):
    teacher = _teacher("cascade")
    batch, regions = _regions(teacher)
    found = _predict(teacher, regions, batch)
    seen = []
    monkeypatch.setattr(
        cascade_rcnn, "fast_rcnn_inference", lambda *given: seen.append(given) or (None, None)
    )
    proposals = [
        Instances(size, proposal_boxes=boxes)
        for size, boxes in zip(regions.image_sizes, regions.boxes)
    ]
    teacher.model.roi_heads._forward_box(teacher.features(batch), proposals)
    ((boxes, scores, *_),) = seen
    torch.testing.assert_close(found.logits.softmax(dim=1), torch.cat(scores))
    torch.testing.assert_close(found.logits.exp(), torch.cat(scores), msg="not the logarithm")
    deltas = deltas_of_regions(found, regions)
    decoded = regions.box_coder.decode(deltas, Boxes.cat(regions.boxes).tensor)
    torch.testing.assert_close(decoded, torch.cat(boxes), rtol=1e-4, atol=1e-2)
    assert not torch.allclose(deltas, found.deltas), "those are the last stage's own"


@torch.no_grad()
@pytest.mark.parametrize("name", ["standard", "c4", "dc5", "mask"])
def test_other_heads_answer_as_their_own_inference(name):
    teacher = _teacher(name)
    batch, regions = _regions(teacher)
    found = _predict(teacher, regions, batch)
    heads, seen = teacher.model.roi_heads, []
    heads.box_predictor.register_forward_hook(lambda *given: seen.append(given[-1]))
    pairs = zip(regions.image_sizes, regions.boxes)
    proposals = [Instances(size, proposal_boxes=boxes) for size, boxes in pairs]
    heads(None, teacher.features(batch), proposals)
    ((logits, deltas),) = seen
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.deltas, deltas)
    rows = deltas.unflatten(1, (-1, 4))[torch.arange(len(deltas)), regions.labels]
    torch.testing.assert_close(deltas_of_regions(found, regions), rows)


def test_the_last_stage_is_encoded_anew_also_by_the_weights_of_the_student():
    same = ((10.0, 10.0, 5.0, 5.0),) * 3
    teacher = _teacher("cascade", "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", same)
    batch, regions = _regions(teacher)
    found = _predict(teacher, regions, batch)
    assert regions.box_coder.encodes_like(found.box2box_transform)
    deltas, anchors = deltas_of_regions(found, regions), Boxes.cat(regions.boxes).tensor
    expected = found.box2box_transform.apply_deltas(found.deltas, found.sources)
    decoded = regions.box_coder.decode(deltas, anchors)
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-2)
    assert not torch.allclose(deltas, found.deltas)


@pytest.mark.parametrize("name", ["standard", "c4", "dc5", "cascade"])
def test_deltas_are_given_in_the_student_encoding(name):
    teacher = _teacher(name)
    batch, regions = _regions(teacher)
    own = deltas_of_regions(_predict(teacher, regions, batch), regions)
    anchors = Boxes.cat(regions.boxes).tensor
    expected = regions.box_coder.decode(own, anchors)
    _, student, _ = build_pair(*WEIGHTS)
    coder = box_coder_of(student.roi_heads.box_predictor)
    other = regions._replace(box_coder=coder)
    deltas = deltas_of_regions(_predict(teacher, other, batch), other)
    assert not torch.allclose(deltas, own)
    torch.testing.assert_close(coder.decode(deltas, anchors), expected, rtol=1e-4, atol=1e-2)


def test_a_box_without_area_has_finite_deltas():
    coder = box_coder_of(build_pair()[1].roi_heads.box_predictor)
    boxes, regions = torch.tensor([[64.0, 3, 64, 9]]), torch.tensor([[4.0, 4, 20, 30]])
    assert isinstance(coder, DeltaBoxCoder) and coder.encode(boxes, regions).isfinite().all()


@pytest.mark.parametrize("proposals", ["student", "union"])
@pytest.mark.parametrize(
    "student, teacher",
    [
        ("standard", "cascade"),
        ("cascade", "standard"),
        ("standard", "c4"),
        ("c4", "cascade mask"),
        ("panoptic", "mask"),
        ("mask", "panoptic"),
        ("fast", "standard"),
        ("standard", "fast"),
        ("moving", "moving"),
    ],
)
def test_any_two_of_them_compare_the_same_regions(student, teacher, proposals):
    if "fast" in (student, teacher) and proposals == "union":
        return  # refused when it is built
    torch.manual_seed(0)
    model = spread(build_model(plain_cfg(*WITH_BOXES[student]))).train()
    requires = frozenset({"logits", "deltas"})
    batch, required = whole_batch(), RequiredOutputs(requires, proposals)
    torch.manual_seed(5)
    with EventStorage():
        _, step = forward_pair_rcnn(model, _teacher(teacher), batch, required)
    count = len(step.regions)
    assert count and step.student.logits.shape == step.teacher.logits.shape == (count, K + 1)
    assert step.student.deltas.shape == step.teacher.deltas.shape == (count, 4)
    # Also where the heads move the proposals after their losses.
    truth = Boxes(step.region_gt_boxes)
    assert (pairwise_iou(Boxes(step.regions), truth).diagonal() >= 0.5).all()
    for outputs, attached in ((step.student, True), (step.teacher, False)):
        assert outputs.logits.requires_grad == outputs.deltas.requires_grad == attached
        assert outputs.logits.isfinite().all() and outputs.deltas.isfinite().all()
