# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""``make demo`` from end to end, with five iterations on a few images and the shipped teacher."""

import json
import subprocess
import sys

import cv2
import pytest
import torch

from d2kd.data.datasets import synthetic_shapes as shapes
from experiments.demo import command
from experiments.demo.teacher import teacher_config
from tests.common import ROOT


def _demo(output, data, *options):
    command = [sys.executable, "tools/demo.py", "--output", str(output), *options]
    environment = {
        "DETECTRON2_DATASETS": str(data),
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
    }
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of the data, of the output, and what the first call printed."""
    data, output = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("demo")
    shapes.generate(data / shapes.FOLDER, {"train": 8, "val": 1, "test": 6})
    result = _demo(output, data, "--iterations", "5")
    assert result.returncode == 0, result.stderr
    return data, output, result.stdout


def test_results(finished):
    _, output, printed = finished
    results = json.loads((output / "results.json").read_text())
    assert list(results) == ["teacher", "baseline", "distilled"]
    for result in results.values():
        assert set(result) == {"AP", "AP50", "AP75", "params", "seconds_per_iter"}
        assert result["seconds_per_iter"] > 0
    # The shipped teacher must be the trained one.
    assert results["teacher"]["AP"] > 40
    assert results["baseline"]["params"] == results["distilled"]["params"] == 799114
    assert "distilled" in printed
    missing = "MODEL.DEVICE is cuda and there is no GPU: this runs on the CPU"
    assert (missing in printed) != torch.cuda.is_available()


def test_the_students_differ_in_the_teaching_alone(finished):
    _, output, _ = finished
    found = [json.loads((output / n / "run.json").read_text()) for n in ("baseline", "distilled")]
    baseline, distilled = (run["settings"] for run in found)
    place = baseline["opts"].index("DISTILL.ENABLED") + 1
    assert (baseline["opts"].pop(place), distilled["opts"].pop(place)) == ("False", "True")
    assert baseline == distilled


def test_picture(finished):
    _, output, _ = finished
    height, width, _ = cv2.imread(str(output / "detections.png")).shape
    assert width > 1000 and height > 1000


def test_a_second_call_finds_everything_there(finished):
    data, output, _ = finished
    before = (output / "distilled" / "model_final.pth").stat().st_mtime_ns
    result = _demo(output, data, "--iterations", "5")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("already there") == 3
    assert (output / "distilled" / "model_final.pth").stat().st_mtime_ns == before


def test_options_of_the_command_line_reach_both_students(tmp_path, monkeypatch):
    given = [
        "--output",
        str(tmp_path),
        "--seed",
        "4",
        "MODEL.DEVICE",
        "cpu",
        "SOLVER.BASE_LR",
        "0.5",
    ]
    monkeypatch.chdir(ROOT)
    args = command.parse_args(given)
    teacher = teacher_config(command.read_config(args), "d2kd_shapes_test")
    for distil in (True, False):
        run = command.student_run("x", distil, teacher, args)
        opts = dict(zip(run.opts[::2], run.opts[1::2]))
        assert (opts["SOLVER.BASE_LR"], opts["SEED"]) == ("0.5", "4")
        assert (opts["MODEL.DEVICE"], opts["DISTILL.ENABLED"]) == ("cpu", str(distil))


@pytest.mark.parametrize(
    "opts, words",
    [
        (["DISTILL.ENABLED", "False"], "the demo needs DISTILL.ENABLED True"),
        (["DATASETS.TRAIN", "('d2kd_shapes_val',)"], "under configs/shapes/"),
        (["MODEL.DEVIZE", "cpu"], "Did you mean 'MODEL.DEVICE'?"),
    ],
)
def test_a_user_error_ends_the_demo_with_its_message(tmp_path, capsys, monkeypatch, opts, words):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        command.main(["--output", str(tmp_path), *opts])
    printed = capsys.readouterr().err
    assert end.value.code == 2 and words in printed and "Traceback" not in printed


def test_too_few_iterations_are_refused(capsys):
    with pytest.raises(SystemExit):
        command.parse_args(["--iterations", "3"])
    assert "set --iterations to 4 or more" in capsys.readouterr().err
