# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A run resumed from any of its checkpoints ends bit-equal to the run that never stopped."""

import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from d2kd.checkpoint.run_state import RunState
from d2kd.engine import DistillTrainer
from d2kd.engine.distributed.process_group import Group, join_group, leave_group
from tests.common.helpers import write_teacher
from tests.common.many import PRELOAD
from tests.common.resumed_runs import (
    DENSE,
    differences,
    final_state,
    make_cfg,
    quiet,
    register_mixed,
    resume_from,
    start,
    write_images,
)

GROUPED, WORKERS = "DATALOADER.ASPECT_RATIO_GROUPING", "DATALOADER.NUM_WORKERS"
ADAMW = ["SOLVER.OPTIMIZER", "ADAMW"]
ITERATIONS = ["SOLVER.MAX_ITER", 6]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    write_images(folder)
    register_mixed(folder)
    return folder


@pytest.fixture(scope="module")
def teachers(images, tmp_path_factory):
    """By family; and the images are there."""
    folder = tmp_path_factory.mktemp("teachers")
    return {
        "rcnn": write_teacher(folder / "rcnn"),
        "dense": write_teacher(folder / "dense", *DENSE),
        "none": None,
    }


def _check(teacher, tmp_path, *opts, after=(1, 3)):
    """Train once without a break; resume from its checkpoints after these iterations."""
    start(make_cfg(teacher, tmp_path / "whole", *ITERATIONS, *opts), seed=1).train()
    expected = final_state(tmp_path / "whole")
    for i in after:
        resume_from(tmp_path / f"whole/model_{i:07d}.pth", tmp_path / f"after_{i}")
        cfg = make_cfg(teacher, tmp_path / f"after_{i}", *ITERATIONS, *opts)
        trainer = start(cfg, seed=100 + i)
        assert trainer.start_iter == i + 1
        trainer.train()
        assert differences(final_state(tmp_path / f"after_{i}"), expected) == []
    return expected


@pytest.mark.parametrize(
    "family, opts",
    [
        ("rcnn", [WORKERS, 0, GROUPED, False, *ADAMW]),
        ("rcnn", [WORKERS, 1, GROUPED, True, *ADAMW, "SOLVER.CLIP_GRADIENTS.ENABLED", True]),
        ("rcnn", [WORKERS, 2, GROUPED, True, "DISTILL.PROPOSALS", "union", "SEED", -1]),
        (
            "dense",
            [*DENSE, WORKERS, 0, GROUPED, True, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"],
        ),
        ("none", [WORKERS, 0, GROUPED, True, "SOLVER.ACCUMULATE_STEPS", 3]),
        ("none", [*DENSE, WORKERS, 1, GROUPED, False]),
    ],
)
def test_bit_equal_from_any_checkpoint(teachers, tmp_path, family, opts):
    expected = _check(teachers[family], tmp_path, *opts)
    assert ("distill_losses" in expected) == (family != "none")


@pytest.mark.parametrize("family, opts", [("rcnn", []), ("dense", DENSE)])
def test_bit_equal_with_a_warm_and_with_a_cold_cache(teachers, tmp_path, family, opts):
    opts = [*opts, WORKERS, 1, GROUPED, True, "DISTILL.TEACHER.CACHE"]
    folder = str(tmp_path / "cache")
    # Each resumed run finds the images of the one before.
    expected = _check(teachers[family], tmp_path / "folder", *opts, folder)
    shutil.rmtree(folder)
    # Memory is empty at every start.
    found = _check(teachers[family], tmp_path / "memory", *opts, "memory")
    keys = ("model", "trainer", "distill_losses", "run_state")
    assert differences({k: found[k] for k in keys}, {k: expected[k] for k in keys}) == []


def test_precise_statistics_of_batchnorm_are_resumed(teachers, tmp_path):
    precise = ["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2]
    _check(None, tmp_path, *precise, "TEST.EVAL_PERIOD", 2, GROUPED, True, after=(3,))


@pytest.fixture
def evaluations(monkeypatch, tmp_path):
    """Evaluation that draws random numbers; keeps the checkpoint it finds, lists its steps."""
    done = []

    def test(cls, cfg, model):
        latest = (tmp_path / "whole/last_checkpoint").read_text()
        if not (tmp_path / f"before_{latest}").exists():
            shutil.copy(tmp_path / "whole" / latest, tmp_path / f"before_{latest}")
        done.append(latest)
        torch.rand(3), np.random.rand(2)
        return {"bbox": {"AP": 1.0}}

    monkeypatch.setattr(DistillTrainer, "test", classmethod(test))
    return done


def test_an_evaluation_after_a_checkpoint_is_not_repeated(teachers, tmp_path, evaluations):
    opts = ["TEST.EVAL_PERIOD", 2, "DATASETS.TEST", ("mixed_train",)]
    _check(None, tmp_path, *opts, after=(1, 3))
    # After iterations 1, 3 and the last; after 3 and the last; after the last.
    assert len(evaluations) == 3 + 2 + 1


def test_a_run_killed_in_its_evaluation_evaluates_first(teachers, tmp_path, evaluations):
    opts = ["TEST.EVAL_PERIOD", 2, "DATASETS.TEST", ("mixed_train",)]
    whole = make_cfg(None, tmp_path / "whole", *ITERATIONS, *opts)
    start(whole, seed=1).train()
    expected = final_state(tmp_path / "whole")
    (tmp_path / "before_model_0000001.pth").rename(tmp_path / "model_0000001.pth")
    resume_from(tmp_path / "model_0000001.pth", tmp_path / "killed")
    evaluations.clear()
    trainer = start(make_cfg(None, tmp_path / "killed", *ITERATIONS, *opts), seed=9)
    trainer.train()
    assert len(evaluations) == 3
    assert differences(final_state(tmp_path / "killed"), expected) == []
    # It is recorded for the step it belongs to.
    assert [at for _, at in trainer.storage.history("bbox/AP").values()][0] == 1


def test_a_checkpoint_without_a_record_goes_on_with_a_warning(teachers, tmp_path, caplog):
    start(make_cfg(None, tmp_path / "whole", *ITERATIONS), seed=1).train()
    saved = torch.load(tmp_path / "whole/model_0000003.pth", weights_only=True)
    del saved["run_state"]
    torch.save(saved, tmp_path / "model_0000003.pth")
    resume_from(tmp_path / "model_0000003.pth", tmp_path / "older")
    trainer = start(make_cfg(None, tmp_path / "older", *ITERATIONS), seed=1)
    assert trainer.start_iter == 4
    assert "data order and random numbers restart from the beginning" in caplog.text


def test_another_number_of_processes_is_named_and_all_do_the_same(monkeypatch, caplog):
    run_state = RunState([], torch.nn.Identity())
    run_state.evaluation_due = True
    state = run_state.state_dict()
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        run_state = RunState([], torch.nn.Identity())
        run_state.load_state_dict(state)
        assert "by 1 process(es) and is resumed by 2" in caplog.text
        # Evaluation is everybody's work: one alone would wait for the others.
        assert run_state.restore() and not run_state.restore()


def _one_of_two(rank, images, folder, address):
    """Train without a break; then go on from the first checkpoint with other seeds."""
    quiet()
    multiprocessing.set_start_method("fork", force=True)
    register_mixed(images)
    join_group(Group("cpu", 2, address=address), rank)
    opts = [*ITERATIONS, "SOLVER.MAX_ITER", 4, WORKERS, 1, GROUPED, True, "SOLVER.IMS_PER_BATCH", 4]
    start(make_cfg(None, folder / "whole", *opts), seed=1 + rank).train()
    if rank == 0:
        resume_from(folder / "whole/model_0000001.pth", folder / "resumed")
    comm.synchronize()
    start(make_cfg(None, folder / "resumed", *opts), seed=50 + rank).train()
    leave_group()


def test_each_of_two_processes_goes_on_with_its_own(teachers, images, tmp_path):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([*PRELOAD, "resumed_runs"])
    calls = [(rank, images, tmp_path, f"file://{tmp_path}/rendezvous") for rank in range(2)]
    children = [server.Process(target=_one_of_two, args=args) for args in calls]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    found, expected = (final_state(tmp_path / name) for name in ("resumed", "whole"))
    assert differences(found, expected) == []
    first, second = found["run_state"]["processes"]
    assert first["random"] != second["random"]
