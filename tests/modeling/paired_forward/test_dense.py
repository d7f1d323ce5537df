# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The paired forward of dense detectors: stock losses, one head pass, rows of the same regions."""

import copy
import itertools

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from d2kd.modeling.meta_arch.gfl.losses import expected_distance
from d2kd.modeling.paired_forward.dense import forward_pair_dense
from d2kd.modeling.paired_forward.registry import RequiredOutputs, get_paired_forward
from d2kd.modeling.teacher import FrozenTeacher
from tests.common.tiny_dense import DETECTORS, K, build_dense, dense_cfg, make_batch

EVERYTHING = frozenset({"features", "dense_logits", "logits", "deltas"})


def _observe(student, teacher, batch, requires=EVERYTHING):
    with EventStorage():
        return forward_pair_dense(
            student, teacher, batch, RequiredOutputs(frozenset(requires), "student")
        )


def _count_calls(head):
    """How often each part of a head ran, filled while it runs."""
    calls = {}
    for name, part in head.named_children():
        part.register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1)
        )
    return calls


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_and_their_running_normaliser_are_stock(name):
    stock, batch = build_dense(name), make_batch()
    student, teacher = copy.deepcopy(stock), FrozenTeacher(build_dense(name, seed=1))
    for _ in range(2):
        with EventStorage() as storage:
            expected = stock(batch)
            logged = set(storage.latest())
        with EventStorage() as storage:
            required = RequiredOutputs(EVERYTHING, "student")
            losses, _ = get_paired_forward(dense_cfg(name))(student, teacher, batch, required)
            assert set(storage.latest()) == logged
        assert list(losses) == list(expected)
        assert all(torch.equal(losses[k], expected[k]) for k in losses)
        assert getattr(student, "loss_normalizer", 0) == getattr(stock, "loss_normalizer", 0)
    for values in (losses, expected):
        sum(values.values()).backward()
    for ours, theirs in zip(student.parameters(), stock.parameters()):
        assert ours.grad is theirs.grad is None or torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", DETECTORS)
def test_student_head_runs_and_labels_once(name):
    student, teacher = build_dense(name), FrozenTeacher(build_dense(name, seed=1))
    calls, labelled = _count_calls(student.head), []
    label = student.label_anchors
    student.label_anchors = lambda *args: labelled.append(1) or label(*args)
    _observe(student, teacher, make_batch())
    assert calls and set(calls.values()) == {5}, "once on each of the five levels"
    assert len(labelled) == 1


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize(
    "requires, parts, fields",
    [
        ({"features"}, [], []),
        ({"features", "dense_logits"}, ["cls_subnet", "cls_score"], ["dense_logits"]),
        ({"logits"}, ["cls_subnet", "cls_score"], ["dense_logits", "logits"]),
        ({"deltas"}, ["bbox_subnet", "bbox_pred"], ["deltas"]),
        ({"dense_deltas"}, ["bbox_subnet", "bbox_pred"], ["deltas", "dense_deltas"]),
        (
            {"dense_logits", "logits", "deltas"},
            ["cls_subnet", "cls_score", "bbox_subnet", "bbox_pred"],
            ["dense_logits", "logits", "deltas"],
        ),
    ],
)
def test_teacher_runs_only_the_branches_that_are_read(name, requires, parts, fields):
    student, teacher = build_dense(name), FrozenTeacher(build_dense(name, seed=1))
    calls = _count_calls(teacher.model.head)
    _, step = _observe(student, teacher, make_batch(), requires)
    assert calls == dict.fromkeys(parts, 5)
    outputs = {k: v for k, v in vars(step.teacher).items() if k not in ("features", "box_bins")}
    assert {k for k, v in outputs.items() if v is not None and len(v)} == set(fields)
    maps = [*step.teacher.features.values(), *step.teacher.dense_logits.values()]
    rows = [x for x in (step.teacher.logits, step.teacher.deltas) if x is not None]
    assert not any(x.requires_grad for x in maps + rows)


def _enumerate(logits, deltas, anchors, labels, gt_boxes):
    """Rows of the positives, found an anchor of an image of a level at a time."""
    rows = {"logits": [], "deltas": [], "regions": [], "labels": [], "region_gt_boxes": []}
    start = 0
    for z, t, boxes in zip(logits, deltas, anchors):
        z, t = z.detach().numpy(), t.detach().numpy()
        per_cell, width = len(boxes) // z[0, 0].size, z.shape[3]
        for image, index in itertools.product(range(len(labels)), range(len(boxes))):
            label = int(labels[image][start + index])
            if not 0 <= label < K:
                continue
            (y, x), a = divmod(index // per_cell, width), index % per_cell
            d = t.shape[1] // per_cell
            rows["logits"].append(z[image, a * K : (a + 1) * K, y, x])
            rows["deltas"].append(t[image, a * d : (a + 1) * d, y, x])
            rows["regions"].append(boxes.tensor[index].numpy())
            rows["labels"].append(label)
            matched = getattr(gt_boxes[image], "tensor", gt_boxes[image])
            rows["region_gt_boxes"].append(matched[start + index].numpy())
        start += len(boxes)
    return rows


@pytest.mark.parametrize("name", DETECTORS)
def test_rows_are_the_positives_in_an_independent_enumeration(name):
    student, batch = build_dense(name), make_batch()
    _, step = _observe(student, FrozenTeacher(build_dense(name, seed=1)), batch)
    maps = [step.student.features[level] for level in student.head_in_features]
    anchors = student.anchor_generator(maps)
    labels, gt_boxes = student.label_anchors(anchors, [x["instances"] for x in batch])
    expected = _enumerate(*student.head(maps)[:2], anchors, labels, gt_boxes)

    assert len(expected["labels"]) > 3 and len(set(expected["labels"])) > 1
    if name == "RetinaNet":
        assert any((x == -1).any() for x in labels), "ignored anchors must be in this test"
    bins = step.student.box_bins
    got = {"logits": step.student.logits, "regions": step.regions, "labels": step.labels}
    got["deltas"] = step.student.deltas if bins is None else bins.flatten(1)
    got["region_gt_boxes"] = step.region_gt_boxes
    for field, rows in expected.items():
        np.testing.assert_array_equal(got[field].detach().numpy(), np.array(rows), err_msg=field)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_teacher_with_the_student_weights_gives_the_student_rows(name):
    student, batch = build_dense(name), make_batch()
    _, step = _observe(student, FrozenTeacher(copy.deepcopy(student)), batch)
    for field in ("logits", "deltas"):
        assert torch.equal(getattr(step.teacher, field), getattr(step.student, field))
    for field in ("features", "dense_logits"):
        ours, theirs = getattr(step.student, field), getattr(step.teacher, field)
        assert list(ours) == list(theirs) == ["p3", "p4", "p5", "p6", "p7"]
        assert all(torch.equal(ours[level], theirs[level]) for level in ours)
    per_cell = 3 if name == "RetinaNet" else 1
    assert step.student.dense_logits["p3"].shape == (2, per_cell * K, 16, 16)
    assert step.strides == {f"p{i}": 2**i for i in range(3, 8)}
    assert step.activation == "sigmoid"


@pytest.mark.parametrize("name", DETECTORS)
def test_a_teacher_that_computes_channels_last_answers_the_same(name):
    model = build_dense(name, seed=1)
    teachers = [
        FrozenTeacher(copy.deepcopy(model), layout=layout)
        for layout in ("channels_first", "channels_last")
    ]
    steps = [_observe(build_dense(name), x, make_batch())[1] for x in teachers]
    expected, found = (step.teacher for step in steps)
    for field in ("logits", "deltas"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field))
    for field in ("features", "dense_logits"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field))
        largest = getattr(found, field)["p3"]
        assert largest.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_box_coder_speaks_the_student_encoding(name):
    student = build_dense(name)
    _, step = _observe(student, FrozenTeacher(build_dense(name, seed=1)), make_batch())
    target = student.box2box_transform.get_deltas(step.regions, step.region_gt_boxes)
    decoded = step.box_coder.decode(target, step.regions)
    torch.testing.assert_close(decoded, step.region_gt_boxes, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name, key", [("RetinaNet", "loss_box_reg"), ("FCOS", "loss_fcos_loc")])
def test_the_box_coder_has_the_student_box_loss(name, key):
    student = build_dense(name)
    losses, step = _observe(student, FrozenTeacher(build_dense(name, seed=1)), make_batch())
    target = student.box2box_transform.get_deltas(step.regions, step.region_gt_boxes)
    loss = step.box_coder.loss(step.student.deltas, target, step.regions)
    torch.testing.assert_close(loss.sum() / student.loss_normalizer, losses[key])


def test_ground_truth_of_the_batch_is_flat():
    _, step = _observe(
        build_dense("FCOS"), FrozenTeacher(build_dense("FCOS", seed=1)), make_batch()
    )
    assert step.gt_image.tolist() == [0, 0, 1]
    assert step.gt_boxes[:, 0].tolist() == [8, 30, 5]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_batch_without_ground_truth(name):
    stock, batch = build_dense(name), make_batch(boxes=([], []))
    student, teacher = copy.deepcopy(stock), FrozenTeacher(build_dense(name, seed=1))
    with EventStorage():
        expected = stock(batch)
    losses, step = _observe(student, teacher, batch)
    assert all(torch.equal(losses[k], expected[k]) for k in expected)
    assert step.gt_boxes.shape == step.regions.shape == step.region_gt_boxes.shape == (0, 4)
    for outputs in (step.student, step.teacher):
        assert outputs.logits.shape == (0, K) and outputs.deltas.shape == (0, 4)
    rows = step.student.logits.sum() + step.student.deltas.sum()
    (sum(losses.values()) + rows).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in student.parameters())
    assert all(p.grad is not None for p in student.head.parameters())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_under_autocast_is_finite(name):
    student, teacher = build_dense(name), FrozenTeacher(build_dense(name, seed=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, step = _observe(student, teacher, make_batch())
    assert step.student.logits.dtype == torch.bfloat16
    box_loss = step.box_coder.loss(step.student.deltas, step.teacher.deltas, step.regions)
    assert box_loss.dtype == torch.float32
    (sum(losses.values()) + box_loss.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in student.head.parameters())


def test_bins_of_gfl_and_their_expectation():
    student = build_dense("GFL")
    _, step = _observe(student, FrozenTeacher(copy.deepcopy(student)), make_batch(), {"box_bins"})
    bins = step.teacher.box_bins
    assert bins.shape == (len(step.labels), 4, student.head.num_bins)
    mean = (bins.softmax(2).numpy() * np.arange(bins.shape[2])).sum(2)
    np.testing.assert_allclose(step.student.deltas.detach().numpy(), mean, rtol=1e-5)
    assert step.teacher.logits is None


def test_a_teacher_with_other_level_sizes_is_refused():
    student, teacher = build_dense("FCOS"), FrozenTeacher(build_dense("FCOS", seed=1))
    backbone = teacher.model.backbone
    teacher.model.backbone.forward = lambda x: type(backbone).forward(backbone, x[:, :, :64])
    with pytest.raises(ValueError, match="'p3'.*teacher"):
        _observe(student, teacher, make_batch())


@pytest.mark.parametrize("name", DETECTORS)
def test_rows_of_all_anchors_are_in_the_detectors_own_order(name):
    student, teacher = build_dense(name), build_dense(name, seed=1)
    required = {"dense_logits", "dense_deltas"} | ({"dense_box_bins"} if name == "GFL" else set())
    _, step = _observe(student, FrozenTeacher(teacher), make_batch(), required)
    maps = [step.student.features[level] for level in student.head_in_features]
    boxes = student.anchor_generator(maps)
    labels, _ = student.label_anchors(boxes, [x["instances"] for x in make_batch()])
    for found, expected in zip(step.anchors.values(), boxes):
        assert torch.equal(found.boxes, expected.tensor)
    valid = torch.cat([x.valid for x in step.anchors.values()], dim=1)
    assert torch.equal(valid, torch.stack(labels) >= 0)
    assert valid.all() == (name != "RetinaNet"), "ignored anchors must be in this test"
    for model, outputs in ((student, step.student), (teacher, step.teacher)):
        predictions = model.head([outputs.features[level] for level in model.head_in_features])
        width = 4 * model.head.num_bins if name == "GFL" else 4
        _, rows = model._transpose_dense_predictions(predictions[:2], [K, width])
        if name == "GFL":
            bins = [x.unflatten(2, (4, -1)) for x in rows]
            for found, expected in zip(outputs.dense_box_bins.values(), bins):
                torch.testing.assert_close(found, expected)
            rows = [expected_distance(x) for x in bins]
        assert list(outputs.dense_deltas) == list(step.anchors) == model.head_in_features
        for found, expected in zip(outputs.dense_deltas.values(), rows):
            torch.testing.assert_close(found, expected)
    _, step = _observe(student, FrozenTeacher(teacher), make_batch(), {"logits", "deltas"})
    assert not any(x.dense_deltas or x.dense_box_bins for x in (step.student, step.teacher))
