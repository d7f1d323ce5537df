# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Resuming continues student, adapters, optimizer, schedule, iteration, under the same teacher."""

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from d2kd.engine import DistillTrainer
from d2kd.utils.errors import ResumeError
from tests.common import ROOT
from tests.common.helpers import distill_cfg, plain_cfg, write_teacher

pytestmark = pytest.mark.usefixtures("train_set")


def _trainer(cfg, resume):
    seed_all_rng(1)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def _copy(state):
    """A deep copy of nested dicts and lists of tensors and numbers."""
    if isinstance(state, dict):
        return {k: _copy(v) for k, v in state.items()}
    if isinstance(state, (list, tuple)):
        return [_copy(x) for x in state]
    return state.clone() if isinstance(state, torch.Tensor) else state


def _everything(trainer):
    return _copy(
        {
            "student": dict(trainer.checkpointer.model.state_dict()),
            "adapters": dict(trainer.model.distill_losses.state_dict()),
            "optimizer": trainer.optimizer.state_dict(),
            "schedule": trainer.scheduler.state_dict(),
        }
    )


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
def test_everything_continues(teacher_files, tmp_path, optimizer):
    opts = ["OUTPUT_DIR", str(tmp_path), "SOLVER.OPTIMIZER", optimizer]
    # What the student inherits is not copied over what it has learned.
    cfg = distill_cfg(teacher_files, *opts, "DISTILL.STUDENT.INHERIT", ["backbone.bottom_up.stem"])
    first = _trainer(cfg, resume=True)
    assert first.start_iter == 0, "nothing to resume is a fresh start"
    first.train()
    expected = _everything(first)
    assert any(
        x.abs().sum() > 0 for s in expected["optimizer"]["state"].values() for x in s.values()
    )

    cfg = cfg.clone()
    cfg.SOLVER.MAX_ITER = 5
    second = _trainer(cfg, resume=True)
    assert second.start_iter == 3
    torch.testing.assert_close(_everything(second), expected, rtol=0, atol=0)
    second.train()
    assert second.iter == 5
    weights = second.storage.history("loss_weight/cls").values()
    assert [value for value, _ in weights] == pytest.approx([1 - 3 / 5, 1 - 4 / 5])
    stem = "student.backbone.bottom_up.stem.conv1.weight"
    assert not torch.equal(second.model.get_parameter(stem), expected["student"][stem[8:]])


def test_another_teacher_is_refused(teacher_files, tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", 1]
    _trainer(distill_cfg(teacher_files, *opts), resume=False).train()
    other = write_teacher(tmp_path / "other", seed=8)
    trainer = DistillTrainer(distill_cfg(other, *opts))
    before = _copy(dict(trainer.checkpointer.model.state_dict()))
    with pytest.raises(ResumeError, match="teacher.pth .* is resumed with .*other.teacher.pth"):
        trainer.resume_or_load(resume=True)
    found = trainer.checkpointer.model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in before.items()), "half loaded"
    moved = tmp_path / "moved.pth"
    moved.write_bytes(teacher_files[1].read_bytes())
    _trainer(distill_cfg((teacher_files[0], moved), *opts), resume=True)


@pytest.mark.parametrize("channels", [16, 24])
@pytest.mark.parametrize("distilled, kind", [(True, "under a"), (False, "without a")])
def test_a_baseline_and_a_distilled_run_are_not_mixed(tmp_path, distilled, kind, channels):
    """Also where no adapter makes their optimizers differ."""
    files = write_teacher(tmp_path / "teacher", "MODEL.FPN.OUT_CHANNELS", channels)
    opts = ["OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", 1, "DISTILL.ENABLED"]
    _trainer(distill_cfg(files, *opts, distilled), resume=False).train()
    message = f"{tmp_path}/out was trained {kind} teacher, .* set DISTILL.ENABLED {distilled} to"
    with pytest.raises(ResumeError, match=message):
        _trainer(distill_cfg(files, *opts, not distilled), resume=True)
    weights = ["MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth")]
    anew = distill_cfg(files, *opts, not distilled, *weights, "OUTPUT_DIR", str(tmp_path / "new"))
    _trainer(anew, resume=True)


def test_a_fresh_start_over_another_run_is_warned_of(tmp_path, caplog):
    cfg = plain_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", 1)
    _trainer(cfg, resume=False).train()
    _trainer(cfg, resume=True)
    assert "holds another run" not in caplog.text
    _trainer(cfg, resume=False)
    warned = f"OUTPUT_DIR {tmp_path} holds another run (model_final.pth, last_checkpoint)"
    assert warned in caplog.text and "add --resume" in caplog.text


def test_the_identity_is_of_the_file_that_was_loaded(tmp_path):
    files = write_teacher(tmp_path / "teacher")
    opts = ["OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", 1]
    trainer = _trainer(distill_cfg(files, *opts), resume=False)
    original = files[1].read_bytes()
    write_teacher(tmp_path / "teacher", seed=8)
    trainer.train()
    with pytest.raises(ResumeError, match="set DISTILL.TEACHER.WEIGHTS back"):
        _trainer(distill_cfg(files, *opts), resume=True)
    files[1].write_bytes(original)
    _trainer(distill_cfg(files, *opts), resume=True)


def test_the_checkpoints_of_steps_are_named_in_one_place():
    found = [path.name for path in (ROOT / "d2kd").rglob("*.py") if "model_{" in path.read_text()]
    assert found == ["run_checkpointer.py"]


def test_a_baseline_resumes_its_optimizer_too(tmp_path):
    cfg = plain_cfg("OUTPUT_DIR", str(tmp_path))
    first = _trainer(cfg, resume=False)
    first.train()
    second = _trainer(cfg, resume=True)
    states = [_copy(trainer.optimizer.state_dict()) for trainer in (first, second)]
    assert states[0]["state"]
    torch.testing.assert_close(*states, rtol=0, atol=0)
