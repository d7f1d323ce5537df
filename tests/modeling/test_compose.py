# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Distiller.compose: the same model and the same checks as from a cfg, of parts built elsewhere."""

import copy
import re

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from d2kd.engine import build_composed_hooks
from d2kd.losses.classification import ClassificationLoss
from d2kd.losses.regression import RegressionLoss
from d2kd.modeling import Distiller, DistillLoss, FrozenTeacher, feature_loss, load_teacher
from d2kd.utils.errors import ConfigError, PairMismatchError
from tests.common.detectors import DETECTORS, detector_cfg, write_teachers
from tests.common.helpers import build_distiller, make_batch, plain_cfg, run
from tests.common.lazy_files import toy_text, write_toy


def _cls(**kwargs):
    given = {"where": "positives", "distance": "cross_entropy", "temperature": 1.0, **kwargs}
    return ClassificationLoss(weight=1.0, **given)


def _reg(**kwargs):
    given = {"gate": "student", "distance": "box_loss", "temperature": 10.0, **kwargs}
    return RegressionLoss(weight=1.0, **given)


def _toy(folder, **kwargs):
    (folder / "student.py").write_text(toy_text(**{"width": 4, **kwargs}))
    torch.manual_seed(1)
    return instantiate(LazyConfig.load(str(folder / "student.py")).model).train()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return load_teacher(str(write_toy(tmp_path_factory.mktemp("toy"))))


@pytest.mark.parametrize("name", DETECTORS)
def test_it_gives_the_losses_of_a_cfg(files, name):
    cfg = detector_cfg(files, name, {})
    expected = run(build_distiller(cfg), make_batch())
    torch.manual_seed(1)
    student = build_model(cfg).train()
    losses = {
        "feature": feature_loss(weight=0.001),
        "cls": _cls(),
        "reg": DistillLoss(_reg(), 1.0),
    }
    teacher = load_teacher(*map(str, files[name]))
    model = Distiller.compose(student=student, teacher=teacher, losses=losses).train()
    for loss in losses:
        model.register_loss_hook(loss, lambda module, step: module(step))
    found = run(model, make_batch())
    assert found.keys() == expected.keys()
    # Adapters are drawn anew: their stream is not the teacher's.
    same = {key for key in found if torch.equal(found[key], expected[key])}
    assert set(found) - same <= {"loss_distill_feature"}


def test_building_it_draws_nothing(teacher, tmp_path):
    student = _toy(tmp_path)
    before = torch.get_rng_state()
    Distiller.compose(student=student, teacher=teacher, losses={"feature": feature_loss()})
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("order, swapped", [("BGR", False), ("RGB", True)])
def test_a_plain_detector_is_frozen_and_reads_its_own_order(tmp_path, order, swapped):
    losses = {"feature": feature_loss()}
    model = Distiller.compose(
        student=_toy(tmp_path), teacher=_toy(tmp_path, width=8, order=order), losses=losses
    ).train()
    assert isinstance(model.teacher, FrozenTeacher) and model.teacher.swap_channels == swapped
    assert not model.teacher.model.training
    assert not any(x.requires_grad for x in model.teacher.parameters())


LOSSES = {"feature": feature_loss(mask="uniform"), "cls": _cls(), "reg": _reg()}


@pytest.mark.parametrize(
    "student, losses, kind, message",
    [
        ({"classes": 3}, LOSSES, PairMismatchError, "NUM_CLASSES is 3 for the student and 4"),
        ({"multiple": 32}, LOSSES, PairMismatchError, "pad images to multiples of"),
        ({}, {"cls": _cls(where="gaussian")}, None, ""),
        ({}, {"reg": _reg(distance="distribution_kl")}, ConfigError, "RetinaNet has no box_bins"),
        ({}, {}, ConfigError, "losses is empty: give at least one"),
        ({}, {"cls": nn.ReLU()}, ConfigError, "'cls' is a ReLU without 'requires'"),
        ({}, {"cls": 3.0}, ConfigError, "the loss 'cls' is 3.0: give a loss module"),
        ({}, {"cls": (_cls(), 1.0, None, 2)}, ConfigError, "give a loss module, feature_loss"),
        ({}, {"cls": ("cls", 1.0)}, ConfigError, "'cls', which is no loss module"),
        ({}, {"f": feature_loss(mask="gausian")}, ConfigError, "mask is 'gausian'.*'gaussian'"),
        ({}, {"f": feature_loss(levels=["p9"])}, PairMismatchError, "no feature level 'p9'"),
    ],
)
def test_what_does_not_fit_is_refused(teacher, tmp_path, student, losses, kind, message):
    given = {"student": _toy(tmp_path, **student), "teacher": teacher, "losses": losses}
    if kind is None:
        Distiller.compose(**given)
    else:
        with pytest.raises(kind, match=message):
            Distiller.compose(**given)


def test_a_class_that_is_not_registered_says_how(teacher, tmp_path):
    class Alien(nn.Module):
        device = torch.device("cpu")

    alien, losses = Alien(), {"feature": feature_loss(mask="uniform")}
    with pytest.raises(PairMismatchError, match="student's Alien has no Backbone"):
        Distiller.compose(student=alien, teacher=teacher, losses=losses)
    alien.backbone = _toy(tmp_path).backbone
    with pytest.raises(ConfigError, match=re.escape("put @META_ARCH_REGISTRY.register()")):
        Distiller.compose(student=alien, teacher=teacher, losses=losses)


def test_class_names_are_compared(tmp_path, clean_catalogs):
    path = write_toy(tmp_path)
    content = torch.load(tmp_path / "teacher.pth")
    content["classes"] = {"names": ["a", "b", "c", "d"]}
    torch.save(content, tmp_path / "teacher.pth")
    MetadataCatalog.get("mine").thing_classes = ["b", "a", "c", "d"]
    given = {"student": _toy(tmp_path), "teacher": load_teacher(str(path))}
    Distiller.compose(**given, losses={"cls": _cls()})
    with pytest.raises(PairMismatchError, match="the teacher's classes are a, b, c, d"):
        Distiller.compose(**given, losses={"cls": _cls()}, datasets=["mine"])


def test_a_trainer_of_one_s_own_with_an_average_of_the_student(teacher, tmp_path):
    """The example of docs/lazyconfig.md."""
    schedule = LinearParamScheduler(1.0, 0.0)
    model = Distiller.compose(
        student=_toy(tmp_path),
        teacher=teacher,
        losses={"feature": (feature_loss(weight=0.01), 0.5, schedule), "cls": _cls()},
    ).train()
    average = AveragedModel(model.student, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    start, teachers = copy.deepcopy(average.module.state_dict()), teacher.state_dict()
    teachers = {name: x.clone() for name, x in teachers.items()}
    optimizer = torch.optim.SGD([x for x in model.parameters() if x.requires_grad], lr=0.001)
    trainer = SimpleTrainer(model, [make_batch()] * 3, optimizer)
    trainer.register_hooks(build_composed_hooks(model))
    trainer.train(0, 2)
    average.update_parameters(model.student)
    assert trainer.storage.history("loss_weight/feature").values() == [(0.5, 0), (0.25, 1)]
    assert set(average.module.state_dict()) == set(model.student.state_dict())
    assert any(not torch.equal(x, start[n]) for n, x in average.module.state_dict().items())
    assert all(torch.equal(x, teachers[name]) for name, x in teacher.state_dict().items())


def test_a_loop_of_one_s_own_registers_what_scales_the_losses(teacher, tmp_path):
    losses = {"feature": feature_loss(weight=0.01)}
    model = Distiller.compose(student=_toy(tmp_path), teacher=teacher, losses=losses).train()
    with pytest.raises(RuntimeError, match="no hook computes the distillation loss 'feature'"):
        run(model, make_batch())
    found = []
    for factor in (1.0, 0.5):
        model.register_loss_hook("feature", lambda loss, step, f=factor: loss(step).scaled(f))
        found.append(run(model, make_batch())["loss_distill_feature"])
    assert torch.allclose(found[0], 2 * found[1])


def test_a_two_stage_student_needs_no_key(teacher_files):
    torch.manual_seed(0)
    student = build_model(plain_cfg()).train()
    losses = {"feature": feature_loss(mask="richness"), "cls": _cls(), "reg": _reg()}
    teacher = load_teacher(*map(str, teacher_files))
    model = Distiller.compose(
        student=student, teacher=teacher, losses=losses, proposals="union"
    ).train()
    for name in losses:
        model.register_loss_hook(name, lambda loss, step: loss(step))
    assert all(x.isfinite() for x in run(model, make_batch()).values())
