# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A LazyConfig is trained, distilled, killed and resumed as a yaml is."""

import json
import logging
import shutil

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import build_detection_train_loader
from detectron2.engine import SimpleTrainer
from detectron2.engine.hooks import LRScheduler
from detectron2.solver import LRMultiplier
from detectron2.utils.env import seed_all_rng

from d2kd.data.lazy_loader import build_lazy_train_loader
from d2kd.data.resumable_loader import ResumableLoader
from d2kd.engine import LazyTrainer
from d2kd.engine.lazy_keys import has_key, lazy_keys
from d2kd.utils.errors import ConfigError, PairMismatchError, ResumeError, WeightsError
from tests.common.helpers import TRAIN_SET
from tests.common.lazy_files import write_toy
from tests.common.lazy_runs import write_run
from tests.common.resumed_runs import differences, final_state, new_seed


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("teacher"), width=8, order="RGB")


def _train(path, seed=3, **overrides):
    lazy = LazyConfig.load(str(path))
    LazyConfig.apply_overrides(lazy, [f"{k}={v}" for k, v in overrides.items()])
    seed_all_rng(seed)
    trainer = LazyTrainer(lazy)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def trained(train_set, teacher, tmp_path_factory):
    """(folder, file, trainer) of four distilled steps with checkpoints after two and four."""
    path = write_run(tmp_path_factory.mktemp("run") / "student.py", train_set, teacher, workers=1)
    trainer = _train(path)
    return path.parent, path, trainer


def test_every_loss_is_computed_with_its_schedule_and_logged(trained):
    folder, _, trainer = trained
    rows = [json.loads(x) for x in (folder / "out" / "metrics.json").read_text().splitlines()]
    row = {key: value for x in rows for key, value in x.items()}
    for name in ("feature", "cls", "reg"):
        assert row[f"loss_distill_{name}"] > 0 and f"loss_ratio/{name}" in row
    # Weight and schedule are one factor: 2 * (1 - 3/4) after the last of four steps.
    factors = [row[f"loss_weight/{name}"] for name in ("feature", "cls", "reg")]
    assert factors == [1.0, 0.5, 0.5]
    assert trainer.model.teacher.swap_channels and not trainer.model.teacher.training


def test_a_checkpoint_holds_the_student_alone_and_plain_detectron2_loads_it(trained):
    folder, path, trainer = trained
    content = torch.load(folder / "out" / "model_final.pth", weights_only=True)
    model = instantiate(LazyConfig.load(str(path)).model)
    assert list(content["model"]) == list(model.state_dict())
    DetectionCheckpointer(model).load(str(folder / "out" / "model_final.pth"))
    student = trainer.model.student.state_dict()
    assert all(torch.equal(x, student[name]) for name, x in model.state_dict().items())
    assert any(name.startswith("feature.adapters") for name in content["distill_losses"])
    assert not (folder / "out" / "student.yaml").exists()


def test_every_part_was_trained(trained, train_set, teacher, tmp_path):
    path = write_run(tmp_path / "student.py", train_set, teacher)
    seed_all_rng(3)
    fresh = LazyTrainer(LazyConfig.load(str(path))).model
    after = trained[2].model.state_dict()
    weights = {name for name, x in fresh.named_parameters() if x.requires_grad}
    assert {name.split(".")[0] for name in weights} == {"student", "distill_losses"}
    same = {name for name, x in fresh.state_dict().items() if torch.equal(x, after[name])}
    assert same == set(after) - weights


@pytest.mark.parametrize("distilled", [True, False])
def test_a_run_that_is_killed_ends_as_if_it_had_not(
    trained, train_set, teacher, tmp_path, distilled
):
    whole = trained[0] / "out"
    if not distilled:
        _train(write_run(tmp_path / "whole" / "student.py", train_set, workers=1))
        whole = tmp_path / "whole" / "out"
    path = write_run(
        tmp_path / "resumed" / "student.py", train_set, teacher if distilled else None, workers=1
    )
    (path.parent / "out").mkdir()
    shutil.copy(whole / "model_0000001.pth", path.parent / "out")
    (path.parent / "out" / "last_checkpoint").write_text("model_0000001.pth")
    _train(path, seed=new_seed())
    assert differences(final_state(path.parent / "out"), final_state(whole)) == []


def test_a_baseline_is_what_detectron2_s_own_tool_trains(train_set, tmp_path):
    """The same hooks as its tools/lazyconfig_train_net.py, without the writers."""
    path = write_run(tmp_path / "student.py", train_set)
    lazy = LazyConfig.load(str(path))
    seed_all_rng(3)
    model = instantiate(lazy.model)
    lazy.optimizer.params.model = model
    optimizer = instantiate(lazy.optimizer)
    stock = SimpleTrainer(model, instantiate(lazy.dataloader.train), optimizer)
    scheduler = LRMultiplier(optimizer, instantiate(lazy.lr_multiplier), 4)
    stock.register_hooks([LRScheduler(optimizer, scheduler)])
    stock.train(0, 4)
    found = _train(path).model.state_dict()
    assert all(torch.equal(x, found[name]) for name, x in model.state_dict().items())


def test_another_config_is_named_at_the_resume(trained, tmp_path, train_set, teacher, caplog):
    shutil.copytree(trained[0] / "out", tmp_path / "out")
    path = write_run(tmp_path / "student.py", train_set, teacher)
    with caplog.at_level(logging.WARNING):
        _train(path, **{"train.max_iter": 5, "distill.losses.cls.weight": 0.25})
    assert "DISTILL.LAZY.losses.cls.weight was 0.5, is 0.25" in caplog.text
    other = write_toy(tmp_path / "other", width=8, seed=9)
    with pytest.raises(ResumeError, match="was started with the teacher"):
        _train(write_run(path, train_set, other))
    with pytest.raises(ResumeError, match="MODEL.LAZY.backbone.width was 4, is 6"):
        _train(write_run(path, train_set, teacher, width=6))


def test_what_does_not_fit_stops_before_the_first_step(train_set, teacher, tmp_path):
    path = write_run(tmp_path / "student.py", train_set, teacher, classes=5)
    with pytest.raises(PairMismatchError, match="NUM_CLASSES is 5 for the student and 4"):
        _train(path)
    path.write_text(path.read_text().replace("log_period=2,", "").replace("lr_multiplier", "x"))
    with pytest.raises(ConfigError, match="has no lr_multiplier, train.log_period: define it"):
        lazy_keys(LazyConfig.load(str(path)))
    path.write_text(path.read_text() + "distill = dict(teacher=dict(config_file=''))\n")
    with pytest.raises(ConfigError, match="train.log_period, distill.losses: define it"):
        lazy_keys(LazyConfig.load(str(path)))


def test_detectron2_s_loader_is_made_resumable_and_others_stay(train_set, tmp_path):
    lazy = LazyConfig.load(str(write_run(tmp_path / "student.py", train_set)))
    node = lazy.dataloader.train
    assert isinstance(build_lazy_train_loader(node), ResumableLoader)
    node["_target_"] = "detectron2.data.build.build_detection_train_loader"
    assert isinstance(build_lazy_train_loader(node), ResumableLoader)
    seed_all_rng(1)
    stock = iter(instantiate(node))
    expected = [[x["image"] for x in next(stock)] for _ in range(3)]
    seed_all_rng(1)
    ours = iter(build_lazy_train_loader(node))
    found = [[x["image"] for x in next(ours)] for _ in range(3)]
    assert all(torch.equal(*pair) for batch in zip(found, expected) for pair in zip(*batch))
    node["_target_"] = _own_loader
    assert build_lazy_train_loader(node) == (TRAIN_SET, 2)
    assert build_detection_train_loader is not _own_loader


def _own_loader(dataset, mapper, total_batch_size, num_workers):
    return TRAIN_SET, total_batch_size


def test_a_key_counts_as_there_whatever_its_value(train_set, tmp_path):
    lazy = LazyConfig.load(str(write_run(tmp_path / "student.py", train_set)))
    lazy.train.note = None
    found = [has_key(lazy, x) for x in ("train.note", "train.amp.enabled", "train.nothing", "x.y")]
    assert found == [True, True, False, False]


def test_it_starts_from_init_checkpoint_and_takes_any_teacher(trained, train_set, tmp_path):
    start = trained[0] / "out" / "model_final.pth"
    path = write_run(tmp_path / "student.py", train_set, "unused")
    path.write_text(path.read_text() + "distill['teacher'] = model.copy()\n")
    lazy = LazyConfig.load(str(path))
    lazy.train.init_checkpoint = str(start)
    trainer = LazyTrainer(lazy)
    trainer.resume_or_load(resume=False)
    saved = torch.load(start, weights_only=True)["model"]
    assert all(torch.equal(x, saved[n]) for n, x in trainer.model.student.state_dict().items())
    # Its file is not known: its tensors are its fingerprint.
    assert not trainer.model.teacher.fingerprint
    assert trainer.checkpointer.checkpointables["teacher"].weights == "RetinaNet"
    lazy.train.init_checkpoint = str(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="nowhere.pth is not there"):
        LazyTrainer(lazy).resume_or_load(resume=False)
