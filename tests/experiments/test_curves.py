# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Curves over the length of the schedule: what is trained, kept and written."""

import json
import sys

import pytest

from experiments import curves
from experiments.curve_report import Curve, converged_at, markdown, write_curves
from experiments.curve_suites import CURVES
from experiments.suites import BASELINE
from tests.common import ROOT


@pytest.mark.parametrize(
    "suite, student, detector, method",
    [
        pytest.param(suite, student, detector, method, id=f"{suite} {student} {detector} {name}")
        for suite, found in CURVES.items()
        for student, detectors in found.students.items()
        for detector, methods in detectors.items()
        for name, method in ((m.name, m) for m in methods)
    ],
)
def test_methods_are_configs_of_the_detector(suite, student, detector, method):
    assert (ROOT / method.config).is_file()
    assert f"/{suite}/" in method.config and f"/{detector}_" in method.config
    assert (method.paper or "TAR") in ("TAR", "FRS", "SSIM")
    assert method.name.endswith(", shares") == ("DISTILL.BALANCE" in method.opts)


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Call the tool with trainings replaced by made-up results; returns (call, runs)."""
    runs, teachers = [], []

    def train(run, threads=None, every=20):
        runs.append(run)
        if train.broken and "seed 2" in run.name and "SSIM" in run.name:
            raise RuntimeError("broken")
        opts = dict(zip(run.opts[::2], run.opts[1::2]))
        run.output.mkdir(parents=True, exist_ok=True)
        text = "Overall training speed: 97 iterations in 0:00:48 (0.5000 s / it)\n"
        (run.output / "console.txt").write_text(text)
        length, seed = int(opts["SOLVER.MAX_ITER"]), int(opts["SEED"])
        return {"AP": 10.0 + seed + length / 100 + (5.0 if "SSIM" in run.name else 0.0)}

    def call(*options, split="test"):
        paths = ["--runs", str(tmp_path / "runs"), "--docs", str(tmp_path / "docs")]
        paths += ["--zoo", str(tmp_path / "zoo.md")]
        (tmp_path / "zoo.md").write_text("<!-- curves shapes A faster_rcnn -->\n<!-- end -->\n")
        argv = ["curves", "--suite", "shapes", "--split", split, *paths, *options]
        monkeypatch.setattr(sys, "argv", argv)
        curves.main()
        name = "curves.json" if split == "test" else "curves_val.json"
        return json.loads((tmp_path / "docs" / name).read_text())["rows"]

    train.broken, train.teachers = False, teachers
    monkeypatch.setattr(curves, "train", train)
    monkeypatch.setattr(curves, "ensure_teacher", lambda cfg: teachers.append(cfg))
    monkeypatch.chdir(ROOT)
    return call, runs, train


SSIM = ("--methods", "SSIM", "--lengths", "100", "200")


def test_a_suite(suite, tmp_path):
    call, runs, train = suite
    rows = call(*SSIM, "--seeds", "1", "2")
    (teacher,) = train.teachers
    assert teacher.DISTILL.TEACHER.CONFIG_FILE.startswith("shapes/teacher/faster_rcnn")
    assert [(row["method"], row["iterations"]) for row in rows] == [
        (BASELINE, 100),
        ("SSIM", 100),
        (BASELINE, 200),
        ("SSIM", 200),
    ]
    assert rows[1] == {
        "suite": "shapes",
        "student": "A",
        "detector": "faster_rcnn",
        "method": "SSIM",
        "paper": "SSIM",
        "iterations": 100,
        "seeds": [1, 2],
        "ap": [17.0, 18.0],
        "seconds": [50.0, 50.0],
        "at_convergence": False,
    }
    for run in runs:
        opts = dict(zip(run.opts[::2], run.opts[1::2]))
        length = int(opts["SOLVER.MAX_ITER"])
        assert opts["SOLVER.STEPS"] == f"({length * 4 // 5},)"
        # A baseline has no teacher, which a cache needs.
        cached = opts.get("DISTILL.TEACHER.CACHE")
        assert cached == (None if BASELINE in run.name else "memory")
    assert len({run.output for run in runs}) == len(runs) == 8
    assert (tmp_path / "docs" / "shapes_A_faster_rcnn.png").stat().st_size > 5000
    page = (tmp_path / "zoo.md").read_text()
    assert "+5.0 ± 0.0 (2)" in page and "12.5 ± 0.7 (2)" in page


def test_seeds_are_joined_and_new_ones_count(suite):
    call, _, train = suite
    call(*SSIM, "--seeds", "1", "2")
    rows = call(*SSIM, "--seeds", "3")
    assert all(row["seeds"] == [1, 2, 3] for row in rows)
    assert rows[1]["ap"] == [17.0, 18.0, 19.0]


def test_convergence_is_read_from_the_validation_part(suite):
    call, _, _ = suite
    # 100 iterations more gain 1 AP here: too much, from 50 to 100 only a half.
    call("--methods", "SSIM", "--lengths", "50", "100", "200", "--seeds", "1", split="val")
    rows = call("--methods", "SSIM", "--lengths", "50", "100", "--seeds", "1")
    assert [row["iterations"] for row in rows if row["at_convergence"]] == [50, 50]


def test_a_failed_training_stops_no_other(suite):
    call, runs, train = suite
    train.broken = True
    with pytest.raises(SystemExit, match="2 of 8 trainings failed"):
        call(*SSIM, "--seeds", "1", "2")
    assert len(runs) == 8


@pytest.mark.parametrize(
    "options, words",
    [
        (("--methods", "SIM"), "SIM"),
        (("--student", "C"), "--student is 'C'"),
        (("--detector", "yolo"), "--detector is 'yolo'"),
    ],
)
def test_unknown_names_are_refused(suite, options, words):
    call, runs, _ = suite
    with pytest.raises(SystemExit, match=words):
        call(*options)
    assert not runs


def _curve(method, iterations, ap, **changes):
    fields = {"suite": "cards", "student": "A", "detector": "fcos", "paper": ""}
    fields.update(seeds=list(range(len(ap))), seconds=[1.0] * len(ap), **changes)
    return Curve(method=method, iterations=iterations, ap=ap, **fields)


@pytest.mark.parametrize(
    "means, at", [((10, 12, 12.9), 2), ((10, 10.5, 20), 1), ((10, 12, 14), None), ((10,), None)]
)
def test_the_baseline_converges_where_doubling_gains_less_than_1(means, at):
    rows = [_curve(BASELINE, 2**i, [float(mean)]) for i, mean in enumerate(means)]
    assert converged_at([*rows, _curve("TAR", 2, [50.0])]) == at


def test_gains_are_paired_and_marked_above_twice_their_deviation():
    rows = [_curve(BASELINE, 8, [10.0, 20.0, 30.0]), _curve("TAR", 8, [13.0, 23.2, 33.1])]
    rows += [_curve("FRS", 8, [11.0, 24.0, 33.0]), _curve("SSIM", 8, [13.0, 23.2])]
    table = markdown([*rows, _curve("PKD", 8, [13.0])])
    assert "**+3.1 ± 0.1**" in table and "+2.7 ± 1.5" in table and "**+2.7" not in table
    assert "| +3.1 ± 0.1 (2)" in table and "| +3.0 (1)" in table, "too few seeds are told"


def test_other_groups_stay(tmp_path):
    (tmp_path / "zoo.md").touch()
    for student in "AB":
        row = _curve(BASELINE, 8, [10.0])
        fields = {**vars(row), "student": student}
        write_curves([Curve(**fields)], tmp_path, "test", tmp_path / "zoo.md")
    rows = json.loads((tmp_path / "curves.json").read_text())["rows"]
    assert [row["student"] for row in rows] == ["A", "B"]
