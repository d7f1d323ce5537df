# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Ctrl-C: the step is finished, a checkpoint written, the status is 130, and the run resumes."""

import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from d2kd.engine import DistillTrainer, interrupt
from d2kd.engine.interrupt import INTERRUPTED, interruptible
from tests.common.helpers import distill_cfg, plain_cfg

pytestmark = pytest.mark.usefixtures("train_set")


class _Press(HookBase):
    """Ctrl-C in the middle of an iteration; a terminal sends it to data workers too."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            workers = [child.pid for child in multiprocessing.active_children()]
            for process in [*workers, os.getpid()]:
                os.kill(process, signal.SIGINT)


def _trainer(teacher_files, folder, *opts, resume=False):
    seed_all_rng(1)
    trainer = DistillTrainer(distill_cfg(teacher_files, "OUTPUT_DIR", str(folder), *opts))
    trainer.resume_or_load(resume=resume)
    return trainer


def test_checkpoint_status_and_resume(teacher_files, tmp_path, capfd):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended, interruptible():
        trainer = _trainer(teacher_files, tmp_path, "DATALOADER.NUM_WORKERS", 1)
        trainer.register_hooks([_Press(1)])
        trainer.train()
    assert ended.value.code == INTERRUPTED == 130
    assert signal.getsignal(signal.SIGINT) is before
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


def _press():
    os.kill(os.getpid(), signal.SIGINT)


def _train_to_the_end(folder, *hooks):
    """Which must end with status 130, and model_final.pth."""
    with pytest.raises(SystemExit) as ended, interruptible():
        trainer = DistillTrainer(plain_cfg("OUTPUT_DIR", str(folder)))
        trainer.register_hooks(hooks)
        trainer.train()
    assert ended.value.code == INTERRUPTED
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(folder / "model_final.pth")["iteration"] == 2


def test_in_the_last_step_nothing_is_evaluated_after_its_checkpoint(
    tmp_path, evaluations, monkeypatch, caplog
):
    closed = _Closed(monkeypatch)
    caplog.set_level("INFO", "d2kd")
    _train_to_the_end(tmp_path, _Press(2))
    assert evaluations.done == [] and closed.count == 1
    assert f"model_final.pth is in {tmp_path}; --eval-only --resume evaluates" in caplog.text


def test_in_the_last_evaluation_it_stops_at_once(tmp_path, evaluations, monkeypatch, caplog, capfd):
    closed = _Closed(monkeypatch)
    caplog.set_level("INFO", "d2kd")
    evaluations.during(_press)
    _train_to_the_end(tmp_path)
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


def test_the_second_time_it_stops_at_once():
    with pytest.raises(SystemExit) as ended, interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal did nothing")
    assert ended.value.code == INTERRUPTED


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
    monkeypatch.setattr(interrupt._current, "received", True)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        trainer._hooks[-1].after_step()
    assert events == ["gather", "save"]
