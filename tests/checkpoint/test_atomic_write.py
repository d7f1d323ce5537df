# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A checkpoint is there whole or not at all: full disks, kills in the middle, what they leave."""

import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from d2kd.checkpoint.atomic_write import AtomicPathManager, remove_unfinished
from d2kd.engine import DistillTrainer
from d2kd.utils.errors import WeightsError
from tests.common.helpers import plain_cfg

# Saves "first", then is killed in the middle of "second"; the file, or last_checkpoint.
KILLED = """
import os, signal, sys
import torch
from torch import nn
from detectron2.checkpoint import DetectionCheckpointer
from d2kd.checkpoint.atomic_write import AtomicPathManager
folder, where = sys.argv[1:]
checkpointer = DetectionCheckpointer(nn.Linear(2, 2), folder)
checkpointer.path_manager = AtomicPathManager()
nn.init.ones_(checkpointer.model.weight)
checkpointer.save("first")
nn.init.zeros_(checkpointer.model.weight)
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "file":
    def half(data, file):
        file.write(b"half of it")
        file.flush()
        die()
    torch.save = half
elif where == "fsync":
    os.fsync = die
else:
    checkpointer.tag_last_checkpoint = die
checkpointer.save("second")
"""


def _checkpointer(folder, model):
    checkpointer = DetectionCheckpointer(model, str(folder))
    checkpointer.path_manager = AtomicPathManager()
    return checkpointer


@pytest.mark.parametrize("where", ["file", "fsync", "last_checkpoint"])
def test_a_kill_leaves_the_checkpoint_before(tmp_path, where):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), where])
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "second.pth").exists() == (where == "last_checkpoint")
    model = nn.Linear(2, 2)
    checkpointer = _checkpointer(tmp_path, model)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "first.pth")
    checkpointer.resume_or_load("", resume=True)
    assert (model.weight == 1).all()
    remove_unfinished(str(tmp_path))
    left = {path.name for path in tmp_path.iterdir()} - {"second.pth"}
    assert left == {"first.pth", "last_checkpoint"}


def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path):
    model = nn.Linear(1000, 1000)
    checkpointer = _checkpointer(tmp_path, model)
    checkpointer.save("first")
    whole = (tmp_path / "first.pth").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 10**6, limits[1]))
    try:
        with pytest.raises(WeightsError, match="second.pth could not be .* --resume"):
            checkpointer.save("second")
        with pytest.raises(WeightsError, match="first.pth could not be written"):
            checkpointer.save("first")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {"first.pth", "last_checkpoint"}
    assert (tmp_path / "first.pth").read_bytes() == whole
    assert (tmp_path / "last_checkpoint").read_text() == "first.pth"


@pytest.mark.usefixtures("train_set")
def test_the_trainer_writes_whole_files_and_clears_up(tmp_path):
    (tmp_path / "model_0000001.pth.unfinished").write_text("half")
    trainer = DistillTrainer(plain_cfg("OUTPUT_DIR", str(tmp_path)))
    assert not list(tmp_path.glob("*.unfinished"))
    assert isinstance(trainer.checkpointer.path_manager, AtomicPathManager)
    trainer.checkpointer.save("model_0000002")
    found = torch.load(tmp_path / "model_0000002.pth", weights_only=True)
    assert set(found["model"]) == set(trainer.model.state_dict())


@pytest.mark.usefixtures("train_set")
def test_student_yaml_is_whole_or_the_one_before(tmp_path, monkeypatch):
    """A resumed run writes it again, beside checkpoints that are worth nothing without."""
    cfg = plain_cfg("OUTPUT_DIR", str(tmp_path))
    DistillTrainer(cfg)
    before = (tmp_path / "student.yaml").read_text()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("No space left")))
    with pytest.raises(WeightsError, match="student.yaml could not be .*No space left"):
        DistillTrainer(cfg)
    assert (tmp_path / "student.yaml").read_text() == before
    assert not list(tmp_path.glob("*.unfinished"))
