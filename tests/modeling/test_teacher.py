# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The frozen teacher sees images as it would alone, and nothing around it moves it."""

import pytest
import torch
from detectron2.modeling import build_model

from d2kd.modeling import FrozenTeacher
from d2kd.modeling.build import build_teacher, read_teacher_config
from d2kd.modeling.paired_forward.rcnn import forward_pair_rcnn
from d2kd.modeling.paired_forward.registry import RequiredOutputs
from tests.common.helpers import (
    build_distiller,
    build_pair,
    distill_cfg,
    make_batch,
    plain_cfg,
    run,
    spread,
    write_teacher,
)

OTHER_STATISTICS = ["MODEL.PIXEL_MEAN", [10.0, 60.0, 140.0], "MODEL.PIXEL_STD", [20.0, 50.0, 90.0]]


@pytest.mark.parametrize("teacher_format", ["BGR", "RGB"])
@pytest.mark.parametrize("student_format", ["BGR", "RGB"])
def test_features_are_those_of_the_teacher_alone(tmp_path, student_format, teacher_format):
    files = write_teacher(tmp_path, "INPUT.FORMAT", teacher_format, *OTHER_STATISTICS)
    cfg = distill_cfg(files, "INPUT.FORMAT", student_format)
    teacher_cfg = read_teacher_config(cfg)
    teacher = build_teacher(teacher_cfg, cfg.INPUT.FORMAT)
    batch = make_batch()

    alone = build_model(teacher_cfg).eval()
    alone.load_state_dict(torch.load(files[1])["model"])
    swapped = student_format != teacher_format
    read = [{"image": x["image"][[2, 1, 0]] if swapped else x["image"]} for x in batch]
    with torch.no_grad():
        expected = alone.backbone(alone.preprocess_image(read).tensor)
    _, student, _ = build_pair()
    _, step = run(
        lambda x: forward_pair_rcnn(student, teacher, x, RequiredOutputs(frozenset(), "student")),
        batch,
    )
    for level, features in expected.items():
        assert torch.equal(step.teacher.features[level], features)
    assert torch.equal(batch[0]["image"], make_batch()[0]["image"]), "the batch is left as it was"


@pytest.mark.parametrize(
    "opts, swap, shared",
    [
        ([], False, True),
        ([], True, False),
        (OTHER_STATISTICS[:2], False, False),
        (OTHER_STATISTICS[2:], False, False),
    ],
)
def test_images_are_prepared_once_where_statistics_agree(opts, swap, shared):
    _, student, _ = build_pair()
    torch.manual_seed(0)
    model, batch = build_model(plain_cfg(*opts)), make_batch()
    teacher, alone = FrozenTeacher(model, swap_channels=swap), FrozenTeacher(model)
    prepared, prepare, calls = student.preprocess_image(batch), model.preprocess_image, []
    teacher.reuse_student_inputs(student)
    model.preprocess_image = lambda x: calls.append(x) or prepare(x)
    found = teacher.features(batch, prepared)
    assert len(calls) == (0 if shared else 1)
    if not swap:
        expected = alone.features(batch)
        assert all(torch.equal(found[level], expected[level]) for level in expected)


def test_images_padded_otherwise_are_not_shared():
    _, student, teacher = build_pair()
    prepared = student.preprocess_image(make_batch())
    sizes = []
    teacher.model.backbone.bottom_up.register_forward_pre_hook(
        lambda _, inputs: sizes.append(inputs[0].shape[-2:])
    )
    for divisor in (32, 64):
        teacher.model.backbone._size_divisibility = divisor
        teacher.reuse_student_inputs(student)
        teacher.features(make_batch(), prepared)
    assert sizes == [(64, 96), (64, 128)]


def test_eval_mode_and_frozen_whatever_is_called():
    teacher = FrozenTeacher(build_model(plain_cfg()).train())
    for around in (teacher, torch.nn.Sequential(teacher), torch.nn.ModuleList([teacher])):
        around.train()
        assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_features_have_no_gradient_and_leave_buffers():
    teacher = FrozenTeacher(spread(build_model(plain_cfg())))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    features = teacher.train().features(make_batch())
    assert not any(x.requires_grad for x in features.values())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


@pytest.mark.parametrize("layout", ["auto", "channels_first", "channels_last"])
@pytest.mark.parametrize("losses", [["feature"], ["feature", "cls", "reg"]])
def test_the_layout_changes_values_by_rounding_alone(tmp_path, layout, losses):
    opts = ["DISTILL.LOSSES", losses, "DISTILL.TEACHER.LAYOUT"]
    cfg = distill_cfg(write_teacher(tmp_path), *opts, layout)
    first = build_distiller(distill_cfg(write_teacher(tmp_path), *opts, "channels_first"))
    model = build_distiller(cfg)
    model.load_state_dict(first.state_dict())
    # Of the second batch, the teacher prepares the images itself.
    for batch in (make_batch(), make_batch(seed=4)):
        found, expected = (run(m, batch) for m in (model, first))
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert torch.isclose(found[name], value, rtol=1e-4), name
        model.teacher._reuses_student_inputs = first.teacher._reuses_student_inputs = False
    largest = model.teacher.features(make_batch())["p2"]
    last = largest.is_contiguous(memory_format=torch.channels_last)
    assert last == (layout != "channels_first")


def test_compiled_is_the_backbone_alone_with_its_weights_as_constants(monkeypatch):
    _, _, teacher = build_pair()
    expected, keys, calls = teacher.features(make_batch()), list(teacher.state_dict()), []

    def compile_(function, options):
        assert function == teacher.model.backbone.forward and options == {"freezing": True}
        return lambda x: calls.append(x.shape) or {k: 2 * v for k, v in function(x).items()}

    monkeypatch.setattr(torch, "compile", compile_)
    teacher = FrozenTeacher(teacher.model, compiled=True)
    found = teacher.features(make_batch())
    assert len(calls) == 1 and all(torch.equal(found[k], 2 * v) for k, v in expected.items())
    assert list(teacher.state_dict()) == keys
