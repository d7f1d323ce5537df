# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Signals: the step is finished and a checkpoint written; the run ends, and resumes exactly."""

import multiprocessing
import os
import random
import signal
import subprocess
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from d2kd.engine import DistillTrainer, interrupt
from d2kd.engine.interrupt import (
    INTERRUPTED,
    TERMINATED,
    EvaluationStopped,
    Request,
    interruptible,
)
from d2kd.engine.stop_on_signal import StoppableLoader
from tests.common.helpers import distill_cfg, plain_cfg
from tests.common.resumed_runs import (
    differences,
    final_state,
    make_cfg,
    new_seed,
    register_mixed,
    resume_from,
    start,
    write_images,
)

pytestmark = pytest.mark.usefixtures("train_set")


STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


class _Press(HookBase):
    """Ctrl-C in the middle of an iteration; a terminal sends it to data workers too."""

    def __init__(self, iteration, number=signal.SIGINT):
        self.iteration, self.number = iteration, number

    def before_step(self):
        if self.trainer.iter == self.iteration:
            workers = [str(child.pid) for child in multiprocessing.active_children()]
            if workers:  # from another process: a worker obeys its parent's SIGTERM
                subprocess.run(["kill", f"-{int(self.number)}", *workers], check=True)
            os.kill(os.getpid(), self.number)


def _trainer(teacher_files, folder, *opts, resume=False):
    seed_all_rng(1)
    trainer = DistillTrainer(distill_cfg(teacher_files, "OUTPUT_DIR", str(folder), *opts))
    trainer.resume_or_load(resume=resume)
    return trainer


@pytest.mark.parametrize("number", STATUS)
def test_checkpoint_status_and_resume(teacher_files, tmp_path, capfd, number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, interruptible():
        trainer = _trainer(teacher_files, tmp_path, "DATALOADER.NUM_WORKERS", 1)
        trainer.register_hooks([_Press(1, number)])
        trainer.train()
    assert ended.value.code == STATUS[number]
    assert (INTERRUPTED, TERMINATED) == (130, 143)
    assert signal.getsignal(number) is before
    assert "Press Ctrl-C again" in capfd.readouterr().err
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    saved = torch.load(tmp_path / "model_0000001.pth")
    assert saved["iteration"] == 1
    state = trainer.model.student.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in saved["model"].items())
    resumed = _trainer(teacher_files, tmp_path, resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    assert (tmp_path / "model_final.pth").exists()


class _Closed:
    """How often the files of metrics were closed."""

    def __init__(self, monkeypatch):
        self.count = 0
        close = PeriodicWriter.after_train
        monkeypatch.setattr(PeriodicWriter, "after_train", lambda hook: self.count_and(close, hook))

    def count_and(self, close, hook):
        close(hook)
        self.count += 1


@pytest.fixture
def evaluations(monkeypatch):
    """A list of what evaluations, during which a function is called, have come to."""
    done = []

    def test(cls, cfg, model):
        done.append("begun")
        test.during()
        done.append("finished")
        return {}

    test.during = lambda: None
    done_of = SimpleNamespace(done=done, during=lambda function: setattr(test, "during", function))
    monkeypatch.setattr(DistillTrainer, "test", classmethod(test))
    return done_of


def _press(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def _train_to_the_end(folder, *hooks, status=INTERRUPTED):
    """Which must end with this status, and model_final.pth."""
    with pytest.raises(SystemExit) as ended, interruptible():
        trainer = DistillTrainer(plain_cfg("OUTPUT_DIR", str(folder)))
        trainer.register_hooks(hooks)
        trainer.train()
    assert ended.value.code == status
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(folder / "model_final.pth")["iteration"] == 2


@pytest.mark.parametrize("number", STATUS)
def test_in_the_last_step_nothing_is_evaluated_after_its_checkpoint(
    tmp_path, evaluations, monkeypatch, caplog, number
):
    closed = _Closed(monkeypatch)
    caplog.set_level("INFO", "d2kd")
    _train_to_the_end(tmp_path, _Press(2, number), status=STATUS[number])
    assert evaluations.done == [] and closed.count == 1
    assert f"model_final.pth is in {tmp_path}; --eval-only --resume evaluates" in caplog.text


@pytest.mark.parametrize("number", STATUS)
def test_in_the_last_evaluation_it_stops_at_once(
    tmp_path, evaluations, monkeypatch, caplog, capfd, number
):
    closed = _Closed(monkeypatch)
    caplog.set_level("INFO", "d2kd")
    evaluations.during(lambda: _press(number))
    _train_to_the_end(tmp_path, status=STATUS[number])
    assert evaluations.done == ["begun"] and closed.count == 1
    assert "the training is complete" in caplog.text
    assert "writing a checkpoint" not in capfd.readouterr().err


def test_an_evaluation_on_the_way_is_finished_for_the_checkpoints_sake(
    tmp_path, evaluations, capfd
):
    evaluations.during(_press)
    with pytest.raises(SystemExit), interruptible():
        DistillTrainer(plain_cfg("OUTPUT_DIR", str(tmp_path), "TEST.EVAL_PERIOD", 1)).train()
    assert evaluations.done == ["begun", "finished"]
    assert "finishing this iteration and its evaluation" in capfd.readouterr().err
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"


def test_a_second_training_finishes_its_steps_again(tmp_path, evaluations):
    with pytest.raises(SystemExit), interruptible():
        DistillTrainer(plain_cfg("OUTPUT_DIR", str(tmp_path / "first"))).train()
        second = DistillTrainer(plain_cfg("OUTPUT_DIR", str(tmp_path / "second")))
        second.register_hooks([_Press(1)])
        second.train()
    assert evaluations.done == ["begun", "finished"]
    assert (tmp_path / "second/last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.parametrize("first", STATUS)
@pytest.mark.parametrize("second", STATUS)
def test_the_second_time_it_stops_at_once(monkeypatch, first, second):
    monkeypatch.setattr(interrupt, "SAME_REQUEST", 0.0)
    with pytest.raises(SystemExit) as ended, interruptible():
        _press(first)
        _press(second)
        pytest.fail("the second signal did nothing")
    assert ended.value.code == STATUS[second]


def test_sigterm_that_is_sent_to_all_and_passed_on_is_one_request():
    with interruptible():
        _press(signal.SIGTERM)
        _press(signal.SIGTERM)
        assert interrupt.current_handler().take() is Request.TERMINATE


def test_after_the_context_it_acts_as_before():
    with interruptible():
        pass
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_all_processes_gather_their_state_before_the_checkpoint(tmp_path, monkeypatch):
    trainer = DistillTrainer(plain_cfg("OUTPUT_DIR", str(tmp_path)))
    events = []
    monkeypatch.setattr(trainer._run_state, "_get", lambda: events.append("gather"))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "gather", lambda state: [state])
    monkeypatch.setattr(trainer.checkpointer, "save", lambda *_, **__: events.append("save"))
    monkeypatch.setattr(interrupt.current_handler(), "stop", Request.INTERRUPT)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        trainer._hooks[-1].after_step()
    assert events == ["gather", "save"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    write_images(folder)
    register_mixed(folder)
    return folder


# Checkpoints after iterations 1, 3 and 5.
OPTS = ["SOLVER.MAX_ITER", 6, "DATALOADER.NUM_WORKERS", 2]


@pytest.fixture(scope="module")
def whole(images, teacher_files, tmp_path_factory):
    """The final state of a run without a break or an evaluation."""
    folder = tmp_path_factory.mktemp("whole")
    start(make_cfg(teacher_files, folder, *OPTS), seed=1).train()
    return final_state(folder)


@pytest.mark.parametrize("number", STATUS)
def test_a_stop_changes_nothing(teacher_files, tmp_path, whole, number):
    cfg = make_cfg(teacher_files, tmp_path, *OPTS)
    with pytest.raises(SystemExit) as ended, interruptible():
        trainer = start(cfg, seed=1)
        trainer.register_hooks([_Press(2, number)])
        trainer.train()
    assert ended.value.code == STATUS[number]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    start(cfg, new_seed()).train()
    assert differences(final_state(tmp_path), whole) == []


def test_sigusr1_writes_one_checkpoint_and_changes_nothing(teacher_files, tmp_path, whole):
    with interruptible():
        trainer = start(make_cfg(teacher_files, tmp_path / "a", *OPTS), seed=1)
        trainer.register_hooks([_Press(2, signal.SIGUSR1)])
        trainer.train()
    assert differences(final_state(tmp_path / "a"), whole) == []
    found = sorted(path.name for path in (tmp_path / "a").glob("model_0*.pth"))
    assert found == [f"model_000000{i}.pth" for i in (1, 2, 3, 5)]
    resume_from(tmp_path / "a" / "model_0000002.pth", tmp_path / "b")
    start(make_cfg(teacher_files, tmp_path / "b", *OPTS), new_seed()).train()
    assert differences(final_state(tmp_path / "b"), whole) == []


def _evaluate_at_random(*_):
    """An evaluation draws random numbers."""
    random.random(), torch.rand(1)


@pytest.mark.parametrize("when", ["before", "during"])
def test_sigterm_ends_an_evaluation_on_the_way_and_a_resumed_run_evaluates_first(
    teacher_files, tmp_path, images, evaluations, when
):
    """Iteration 2 has no checkpoint of its own."""
    opts = [*OPTS, "TEST.EVAL_PERIOD", 3, "DATASETS.TEST", ("mixed_train",)]
    evaluations.during(_evaluate_at_random)
    start(make_cfg(teacher_files, tmp_path / "whole", *opts), seed=1).train()
    cfg = make_cfg(teacher_files, tmp_path / "a", *opts)
    evaluations.done.clear()
    if when == "during":
        evaluations.during(lambda: (_evaluate_at_random(), _press(signal.SIGTERM)))
    with pytest.raises(SystemExit) as ended, interruptible():
        trainer = start(cfg, seed=1)
        if when == "before":
            trainer.register_hooks([_Press(2, signal.SIGTERM)])
        trainer.train()
    assert ended.value.code == TERMINATED
    assert evaluations.done == (["begun"] if when == "during" else [])
    assert (tmp_path / "a" / "last_checkpoint").read_text() == "model_0000002.pth"
    evaluations.during(_evaluate_at_random)
    evaluations.done.clear()
    start(cfg, new_seed()).train()
    assert evaluations.done == ["begun", "finished"] * 2
    assert differences(final_state(tmp_path / "a"), final_state(tmp_path / "whole")) == []


def test_an_evaluation_that_is_made_up_for_stops_at_once(
    teacher_files, tmp_path, images, evaluations
):
    opts = [*OPTS, "TEST.EVAL_PERIOD", 2, "DATASETS.TEST", ("mixed_train",)]
    cfg = make_cfg(teacher_files, tmp_path, *opts)
    evaluations.during(lambda: _press(signal.SIGTERM))
    for _ in range(2):
        with pytest.raises(SystemExit) as ended, interruptible():
            start(cfg, seed=1).train()
        assert ended.value.code == TERMINATED
        assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.parametrize(
    "at_once, in_evaluation, error",
    [(False, True, EvaluationStopped), (True, False, KeyboardInterrupt), (False, False, None)],
)
def test_a_signal_lost_in_a_callback_stops_at_the_next_batch(
    monkeypatch, at_once, in_evaluation, error
):
    handler, seen = interrupt.current_handler(), []
    monkeypatch.setattr(handler, "at_once", at_once)
    monkeypatch.setattr(handler, "in_evaluation", lambda: in_evaluation)

    def read():
        for batch in StoppableLoader([1, 2, 3]):
            seen.append(batch)
            monkeypatch.setattr(handler, "stop", Request.TERMINATE)

    if error is None:
        read()
        assert seen == [1, 2, 3]
        return
    with pytest.raises(error):
        read()
    assert seen == [1]
