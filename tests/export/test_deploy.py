# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""docs/deploy.md detects what Detectron2 detects, with numpy and onnxruntime alone."""

import re
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor

from d2kd.export.metadata import describe
from d2kd.export.shape import InputShape
from d2kd.export.writers import write
from tests.common import ROOT
from tests.common.exportable import exportable, exportable_cfg

NAMES = ("ant", "bee", "cat", "dog", "eel")
SIZE = ["INPUT.MIN_SIZE_TEST", 192, "INPUT.MAX_SIZE_TEST", 280]
# What is not of Python, numpy or onnxruntime cannot be imported.
BLOCKER = """
import sys
sys.path[:0] = sys.argv[1:]
class Blocker:
    def find_spec(self, name, *_):
        if name.split(".")[0] not in {"numpy", "onnxruntime", *sys.stdlib_module_names}:
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Blocker())
"""
PRINT = """
found = detect(np.load("image.npy"))
np.save("boxes.npy", [box for _, _, box in found])
np.save("scores.npy", [score for _, score, _ in found])
print([name for name, _, _ in found])
"""


def printed_code():
    text = (ROOT / "docs/deploy.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


@pytest.fixture(params=["BGR", "RGB"])
def folder(request, tmp_path):
    """With mine.onnx, image.npy, and expected.pt: what Detectron2 finds there."""
    cfg = exportable_cfg("RetinaNet", *SIZE, "INPUT.FORMAT", request.param)
    model = exportable("RetinaNet")
    metadata = describe(cfg, NAMES, "float32")
    write(model, tmp_path / "mine.onnx", InputShape(), False, metadata)
    # It grows by 1.6, the limit of the longer side, where both resizes round alike.
    image = np.random.default_rng(0).integers(0, 256, (100, 175, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    predictor = DefaultPredictor.__new__(DefaultPredictor)
    predictor.cfg, predictor.model, predictor.input_format = cfg, model, request.param
    predictor.aug = ResizeShortestEdge([192, 192], 280)
    # It takes BGR, as OpenCV reads.
    torch.save(predictor(image[:, :, ::-1])["instances"].get_fields(), tmp_path / "expected.pt")
    return tmp_path


def check(folder, printed):
    expected = torch.load(folder / "expected.pt", weights_only=False)
    boxes, scores = np.load(folder / "boxes.npy"), np.load(folder / "scores.npy")
    assert len(scores) == len(expected["scores"]) > 20
    np.testing.assert_allclose(scores, expected["scores"].numpy(), atol=1e-5)
    # Near-equal scores may change places, so boxes are compared as sets.
    distance = abs(boxes[:, None] - expected["pred_boxes"].tensor.numpy()).max(axis=2)
    assert distance.min(axis=1).max() < 0.01 and distance.min(axis=0).max() < 0.01
    names = sorted(NAMES[i] for i in expected["pred_classes"])
    assert sorted(eval(printed)) == names


def run(folder, *command):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_printed_code_needs_numpy_and_onnxruntime_alone(folder):
    paths = {str(Path(module.__file__).parents[1]) for module in (np, onnxruntime)}
    program = BLOCKER + printed_code() + PRINT
    check(folder, run(folder, sys.executable, "-I", "-c", program, *paths))


@pytest.mark.slow
def test_the_printed_code_runs_in_a_fresh_environment(folder):
    """It downloads numpy and onnxruntime."""
    venv.create(folder / "fresh", with_pip=True)
    python = str(folder / "fresh/bin/python")
    run(folder, python, "-I", "-m", "pip", "install", "--quiet", "numpy", "onnxruntime")
    check(folder, run(folder, python, "-I", "-c", printed_code() + PRINT))


def test_the_printed_resize_is_pillows():
    code = printed_code()
    scope = {"np": np}
    exec(code[code.index("def resized_rows") : code.index("def detect")], scope)
    rows = scope["resized_rows"]
    for old, new in (((60, 90), (96, 144)), ((160, 90), (64, 36)), ((77, 50), (77, 50))):
        image = np.random.default_rng(1).integers(0, 256, (*old, 3), dtype=np.uint8)
        transform = ResizeShortestEdge(min(new), max(new)).get_transform(image)
        expected = transform.apply_image(image).astype(int)
        found = rows(rows(image.swapaxes(0, 1), new[1]).swapaxes(0, 1), new[0])
        assert found.shape == expected.shape and abs(found - expected).max() <= 1
        assert (found != expected).mean() < 0.01


def test_the_printed_code_is_short():
    assert len(printed_code().splitlines()) <= 32
