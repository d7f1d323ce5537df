# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checkpoints that are absent, broken, of something else, or hold code; more in tests/modeling."""

import os
import pickle
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from d2kd.checkpoint.weights import UnreachableError, resolve_weights
from d2kd.engine import DistillTrainer
from d2kd.modeling import Distiller
from d2kd.modeling.build import build_teacher, read_teacher_config
from d2kd.utils.errors import WeightsError
from tests.common.helpers import LEVELS, distill_cfg, plain_cfg, write_teacher


class Evil:
    """What a pickle from an untrusted source may hold: unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def _zoo_file(folder, *opts):
    """The tiny detector as a file of the model zoo: pickled numpy arrays."""
    state = build_model(plain_cfg(*opts)).state_dict()
    content = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "me"}
    (folder / "zoo.pkl").write_bytes(pickle.dumps(content))
    return folder / "zoo.pkl"


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, name):
    content = {"model": {"weight": np.zeros(2)}, "extra": Evil(tmp_path / "spoilt")}
    if name.endswith("pth"):
        torch.save(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(content))
    with pytest.raises(
        WeightsError, match=f"KEY .*{name} cannot be read as a checkpoint of weights"
    ):
        resolve_weights(str(tmp_path / name), "KEY")
    assert not (tmp_path / "spoilt").exists()


def test_the_model_zoos_pickles_are_read(tmp_path, teacher_files):
    wide = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.FPN.OUT_CHANNELS", 24]
    cfg = distill_cfg((teacher_files[0], _zoo_file(tmp_path, *wide)))
    teacher = build_teacher(read_teacher_config(cfg), "BGR")
    assert teacher.fingerprint["weights"].endswith("zoo.pkl")
    for protocol in (1, 2, 4):
        content = {"a": np.float64(3.0), "b": np.zeros((2, 3), np.float16), "c": [1, "x", None]}
        (tmp_path / "old.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        resolve_weights(str(tmp_path / "old.pkl"), "KEY")


def test_a_checkpoint_of_a_run_is_read(tmp_path, train_set, teacher_files):
    cfg = distill_cfg(teacher_files, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", 1)
    DistillTrainer(cfg).train()
    resolve_weights(str(tmp_path / "model_final.pth"), "MODEL.WEIGHTS")


def test_an_address_that_does_not_answer(teacher_files):
    # Port 9 of this machine: nobody listens, and nothing leaves it.
    address = "http://127.0.0.1:9/teacher.pth"
    cfg = distill_cfg((teacher_files[0], address))
    with pytest.raises(WeightsError, match=f"DISTILL.TEACHER.WEIGHTS {address} cannot be"):
        Distiller(cfg)


def test_a_server_without_the_file_is_not_one_out_of_reach(monkeypatch):
    answers = [HTTPError("http://x", 404, "Not Found", None, None), URLError("no route")]
    monkeypatch.setattr(PathManager, "get_local_path", lambda path: throw(answers.pop(0)))
    with pytest.raises(WeightsError, match="404: Not Found") as caught:
        resolve_weights("http://x/start.pth", "KEY")
    assert not isinstance(caught.value, UnreachableError)
    with pytest.raises(UnreachableError, match="no route"):
        resolve_weights("http://x/start.pth", "KEY")


def throw(problem):
    raise problem


@pytest.mark.parametrize(
    "content, words",
    [(None, "is not there"), (b"", "cannot be read"), (b"<html>", "cannot be read")],
)
def test_the_students_own_weights(tmp_path, train_set, content, words):
    path = tmp_path / "student.pth"
    if content is not None:
        path.write_bytes(content)
    opts = ["MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path / "out")]
    trainer = DistillTrainer(plain_cfg(*opts))
    with pytest.raises(WeightsError, match=f"MODEL.WEIGHTS .*{words}"):
        trainer.resume_or_load(resume=False)


@pytest.mark.parametrize(
    "opts, words",
    [
        (["MODEL.RESNETS.DEPTH", 101], "missing"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 9], "wrong shape: roi_heads.box_predictor.cls_score"),
        (
            ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", LEVELS],
            "missing",
        ),
    ],
)
def test_a_teacher_of_another_kind(tmp_path, teacher_files, opts, words):
    deep = write_teacher(tmp_path, *opts)
    yaml, weights = (deep[0], teacher_files[1])
    with pytest.raises(WeightsError, match=f"(?s)the teacher is incomplete|{words}") as caught:
        Distiller(distill_cfg((yaml, weights)))
    assert words in str(caught.value) and "DISTILL.TEACHER.WEIGHTS must belong" in str(caught.value)


def test_a_teacher_of_another_class_count(tmp_path):
    files = write_teacher(tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", 9)
    with pytest.raises(
        ValueError, match="MODEL.ROI_HEADS.NUM_CLASSES is 4 .* and 9 for the teacher"
    ):
        Distiller(distill_cfg(files))
