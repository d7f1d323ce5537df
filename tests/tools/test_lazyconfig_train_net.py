# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The tool as a user calls it: distil in two processes, resume, evaluate, and mistakes."""

import os
import subprocess
import sys

import pytest
import torch

from tests.common import ROOT
from tests.common.lazy_files import write_toy
from tests.common.lazy_runs import write_run

EVALUATOR = """
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator


class Counter(DatasetEvaluator):
    def reset(self):
        self.images = 0

    def process(self, inputs, outputs):
        self.images += len(outputs)

    def evaluate(self):
        return {"count": {"images": self.images}}


dataloader["test"] = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names=dataloader["train"].dataset.names),
    mapper=L(DatasetMapper)(is_train=False, augmentations=[], image_format="BGR"),
    num_workers=0,
)
dataloader["evaluator"] = L(Counter)()
"""
SETS = """
from pathlib import Path
from tests.common.helpers import register_train_set

folder = Path(__file__).parent / "images"
folder.mkdir(exist_ok=True)
register_train_set(folder)
"""


def _call(folder, *words):
    command = [sys.executable, str(ROOT / "tools" / "lazyconfig_train_net.py"), *words]
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    # Its sets are registered by a module beside it.
    done = subprocess.run(
        [*command[:2], "--config-file", "student.py", "--import", "sets", *command[2:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student, its teacher, and the module that registers its training set."""
    folder = tmp_path_factory.mktemp("lazy_tool")
    teacher = write_toy(folder / "teacher")
    path = write_run(folder / "student.py", "tiny_train", teacher)
    path.write_text(path.read_text() + EVALUATOR)
    (folder / "sets.py").write_text(SETS)
    code, text = _call(folder, "--num-processes", "2", "train.max_iter=2")
    assert code == 0, text[-3000:]
    assert "is Python code and runs as such" in text and "loss_distill_reg" in text
    return folder


def test_it_distils_evaluates_and_saves_the_student(folder):
    content = torch.load(folder / "out" / "model_final.pth", weights_only=True)
    assert content["iteration"] == 1
    assert not [name for name in content["model"] if name.startswith(("student", "teacher"))]
    # Of the main process, which has half of them.
    assert '"count/images": 4' in (folder / "out" / "metrics.json").read_text()
    assert (folder / "out" / "config.yaml").is_file()


def test_it_resumes_then_evaluates_the_last_checkpoint(folder):
    code, text = _call(folder, "--resume", "train.max_iter=3", "+train.note=1")
    assert code == 0, text[-3000:]
    assert "Starting training from iteration 2" in text
    code, text = _call(folder, "--eval-only", "--resume")
    assert code == 0 and "8" in text and "teacher weights" not in text


def test_a_mistake_is_one_message_and_status_2(folder):
    code, text = _call(folder, "train.max_itr=3", "+train.new=3")
    assert code == 2 and "Traceback" not in text
    assert "has no train.max_itr=3: correct the key, or write +key=value to add" in text
