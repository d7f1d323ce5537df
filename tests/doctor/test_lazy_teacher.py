# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The doctor and --eval-teacher on a LazyConfig teacher."""

import pytest
import torch

import train_net
from d2kd.doctor import Status
from tests.common.examine import examine
from tests.common.helpers import TEACHER_WIDTH, distill_cfg, make_batch
from tests.common.lazy_files import write_lazy_teacher, write_toy


@pytest.fixture
def lazy(teacher_files, tmp_path):
    """The .py of the teacher that teacher_files hold as a yaml."""
    return write_lazy_teacher(tmp_path / "lazy", teacher_files[1], *TEACHER_WIDTH)


def test_all_is_found_that_is_found_of_the_same_yaml(setup, lazy):
    yaml = examine(setup[0])
    found = examine(setup[0], "DISTILL.TEACHER.CONFIG_FILE", str(lazy))
    assert list(found) == list(yaml)
    for name in ("pair", "adapters", "teacher's boxes", "teacher's pixels", "class names"):
        assert found[name].text == yaml[name].text, name
    assert found["teacher"].text.endswith(f"; Python code builds it, {lazy}")


def test_a_file_that_fails_is_the_teacher_s_error(setup, lazy):
    lazy.write_text("1 / 0")
    found = examine(setup[0], "DISTILL.TEACHER.CONFIG_FILE", str(lazy))["teacher"]
    assert found.status is Status.ERROR and "ZeroDivisionError" in found.text


def test_images_larger_than_its_square_are_warned_of(setup, tmp_path):
    path = write_toy(tmp_path / "square", square=64)
    keys = {"CONFIG_FILE": path, "WEIGHTS": tmp_path / "square" / "teacher.pth"}
    opts = [word for key, x in keys.items() for word in (f"DISTILL.TEACHER.{key}", str(x))]
    opts += ["DISTILL.LOSSES", "['feature']", "DISTILL.FEATURE.LEVELS", "['p3','p4']"]
    assert examine(setup[0], *opts)["square"].status is Status.OK
    found = examine(setup[0], *opts, "INPUT.MAX_SIZE_TRAIN", "96")["square"]
    assert found.status is Status.WARNING and "set it to 64" in found.advice


def test_it_is_evaluated_as_the_same_yaml(lazy, teacher_files, tmp_path, monkeypatch):
    mapper = "{'augmentations': [{'short_edge_length': 64, 'max_size': 64}]}"
    lazy.write_text(lazy.read_text() + f"dataloader = dict(test=dict(mapper={mapper}))\n")
    given = []
    monkeypatch.setattr(train_net.DistillTrainer, "test", lambda *args: given.append(args) or {})
    for path in (teacher_files[0], lazy):
        train_net.eval_teacher(distill_cfg((path, teacher_files[1]), "OUTPUT_DIR", str(tmp_path)))
    sizes = [(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) for cfg, _ in given]
    assert sizes == [(64, 64), (64, 64)]
    with torch.no_grad():
        maps = [model.backbone(model.preprocess_image(make_batch()).tensor) for _, model in given]
    assert all(torch.equal(x, maps[1][name]) for name, x in maps[0].items())
