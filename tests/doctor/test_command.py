# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The doctor's command line: exit status, output, and one program under two names."""

import json
import subprocess
import sys

import pytest
import torch

from d2kd.doctor import command
from d2kd.utils.errors import ResumeError
from tests.common import ROOT


@pytest.mark.parametrize("opts, status", [([], 0), (["DISTILL.TEACHER.WEIGHTS", "absent.pth"], 1)])
def test_exit_status_counts_errors(setup, capsys, opts, status):
    assert command.main(["--config-file", setup[0], "--batches", "1", *opts]) == status
    printed = capsys.readouterr().out
    assert ("error   teacher" in printed) == bool(status)
    assert f"{status} error" in printed.splitlines()[-1]


def test_output_holds_the_findings(setup, tmp_path):
    path = tmp_path / "new" / "findings.json"
    command.main(["--config-file", setup[0], "--output", str(path), "SOLVER.MAX_ITERS", "1"])
    (row,) = json.loads(path.read_text())
    assert (row["status"], row["check"], row["advice"]) == ("error", "config", "")
    assert "Did you mean 'SOLVER.MAX_ITER'?" in row["text"]


@pytest.mark.parametrize("option, traceback", [([], False), (["--traceback"], True)])
def test_a_user_error_ends_the_doctor_with_its_message(monkeypatch, capsys, option, traceback):
    def fail(*_, **__):
        raise ResumeError("set OUTPUT_DIR")

    monkeypatch.setattr(command, "diagnose", fail)
    with pytest.raises(SystemExit) as end:
        command.main(["--config-file", "a.yaml", *option])
    printed = capsys.readouterr().err
    assert end.value.code == 2 and "set OUTPUT_DIR" in printed
    assert ("Traceback" in printed) == traceback


@pytest.mark.parametrize("wrong", [["--batches", "0"], ["--images", "-1"], ["--target-ratio", "0"]])
def test_options_out_of_range_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--config-file", "a.yaml", *wrong])
    assert end.value.code == 2 and "--batches and --target-ratio above 0" in capsys.readouterr().err


def _print_of(*program, opts):
    done = subprocess.run(
        [sys.executable, *program, *opts], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr == ""
    return done.stdout


def test_tool_and_module_print_the_same(setup):
    """Up to the teacher, whose absence ends the checks before anything is timed."""
    opts = ["--config-file", setup[0], "MODEL.DEVICE", "cuda"]
    opts += ["DISTILL.TEACHER.WEIGHTS", "absent.pth"]
    tool, module = (_print_of(*p, opts=opts) for p in (["tools/doctor.py"], ["-m", "d2kd.doctor"]))
    assert tool == module
    missing = "MODEL.DEVICE is cuda and there is no GPU: this runs on the CPU"
    assert (missing in tool) != torch.cuda.is_available()
