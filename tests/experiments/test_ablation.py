# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The suites name what exists; the tables hold each method against the right baselines."""

import json
import sys

import numpy as np
import pytest
from detectron2.config import get_cfg

from d2kd.config.defaults import add_d2kd_config
from experiments import ablation
from experiments.report import Row, markdown, merge, write_report
from experiments.suites import BASELINE, SUITES, teacher_config
from tests.common import ROOT

TABLES = [(name, d) for name, suite in SUITES.items() for d in suite.methods]
METHODS = [(name, d, m) for name, d in TABLES for m in SUITES[name].methods[d]]


@pytest.mark.parametrize(
    "suite, detector, method", METHODS, ids=[f"{s}-{d}-{m.name}" for s, d, m in METHODS]
)
def test_methods_are_configs(suite, detector, method):
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_file(str(ROOT / method.config))
    cfg.merge_from_list(list(method.opts))
    assert cfg.SOLVER.MAX_ITER == SUITES[suite].iterations
    for split in SUITES[suite].splits.values():
        cfg.merge_from_list(list(split))
        assert set(cfg.DATASETS.TRAIN).isdisjoint(cfg.DATASETS.TEST)
    assert cfg.DISTILL.ENABLED == (method.name != BASELINE)
    assert f"configs/{cfg.DISTILL.TEACHER.CONFIG_FILE}" == teacher_config(suite, detector)


@pytest.mark.parametrize("suite, detector", TABLES)
def test_methods_differ(suite, detector):
    methods = SUITES[suite].methods[detector]
    assert methods[0].name == BASELINE
    assert len({m.name for m in methods}) == len({m[1:] for m in methods}) == len(methods)


def test_equal_time():
    found = [ablation.equal_time_iterations(800, ratio) for ratio in (0.9, 1.04, 1.26, 1.52)]
    assert found == [800, 960, 1120, 1280]


def _row(method=BASELINE, ap=(1.0, 2.0, 6.0), **changes):
    fields = {
        "detector": "fcos",
        "method": method,
        "inherit": False,
        "budget": "iterations",
        "iterations": 800,
        "base_iterations": 800,
        "equal_time_iterations": 800 if method == BASELINE else 960,
        "seconds_per_iter": 0.2,
        "teacher_ap": 60.0,
        "seeds": [1, 2, 3],
        "ap": list(ap),
        "ap50": [2 * x for x in ap],
        "config": "a.yaml",
        "opts": [],
    }
    return Row(**{**fields, **changes})


LONGER = _row(ap=(4.0, 2.5, 7.0), budget="time", iterations=960, equal_time_iterations=960)


def test_summary_of_a_row():
    found = _row().to_json()
    assert found["ap_mean"] == 3.0
    assert found["ap_std"] == round(np.std([1, 2, 6], ddof=1), 2)
    assert found["ap50_mean"] == 6.0
    assert Row.from_json(found) == _row()
    assert _row(seeds=[1], ap=(5.0,)).to_json()["ap_std"] == 0


def test_gains_are_paired_and_against_both_baselines():
    clear, lost = _row("FRS", (6.0, 7.0, 11.5)), _row("SSIM", (5.0, 2.0, 8.0))
    lines = markdown([_row(), clear, lost, LONGER]).splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[6:8] for line in lines if "| " in line}
    gain, timed = np.array([5, 5, 5.5]), np.array([2, 4.5, 4.5])
    assert cells["FRS"][0].strip() == f"{gain.mean():+.1f} ± {gain.std(ddof=1):.1f}"
    assert cells["FRS"][1].strip() == f"**{timed.mean():+.1f} ± {timed.std(ddof=1):.1f}**"
    assert cells["SSIM"][1].strip() == "+0.5 ± 0.9"


def test_new_rows_come_first_and_replace_old_ones():
    other, new = _row(detector="gfl"), [_row(ap=(9.0,)), _row("FRS")]
    assert merge([LONGER, _row(), other], new) == [*new, LONGER, other]


def test_report_files(tmp_path):
    (tmp_path / "zoo.md").touch()
    for rows in ([_row(), _row("FRS"), LONGER], [_row(detector="gfl")]):
        write_report(rows, tmp_path, "shapes", tmp_path / "zoo.md")
    found = json.loads((tmp_path / "shapes.json").read_text())["rows"]
    assert [row["detector"] for row in found] == ["fcos", "fcos", "fcos", "gfl"]
    for detector in ("fcos", "gfl"):
        assert (tmp_path / f"{detector}.png").stat().st_size > 5000


def test_tables_replace_what_stands_between_their_lines(tmp_path):
    zoo = tmp_path / "zoo.md"
    around = ("before\n<!-- ablation shapes fcos -->\n", "<!-- end -->\nafter\n")
    other = "<!-- ablation shapes gfl -->\nanother's\n<!-- end -->\n"
    zoo.write_text("".join(around) + other)
    for rows in ([_row()], [_row(), _row("FRS"), LONGER]):
        write_report(rows, tmp_path, "shapes", zoo)
        # Prose is wrapped at 100 columns; a table's row stays in one line.
        between = zoo.read_text().removeprefix(around[0]).removesuffix(around[1] + other)
        assert between.split() == markdown(rows).split()
        assert all(len(x) <= 100 or x.startswith("|") for x in between.splitlines())


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Call the tool with trainings replaced by made-up results; returns (call, runs)."""
    folder = tmp_path / "teachers" / "fcos_teacher"
    folder.mkdir(parents=True)
    (folder / "model_final.pth").touch()
    row = {"time": 1.0, "bbox/AP": 60.0, "bbox/AP50": 80.0, "bbox/AP75": 70.0}
    (folder / "metrics.json").write_text(json.dumps(row))
    runs = []

    def train(run, threads=None, every=20):
        runs.append(run)
        if "timing" in run.name:
            # The second round is slower, by 1.6 and 1.5: the first one counts.
            late = run.output.name.endswith("_1")
            return {
                "seconds_per_iter": (0.31 + 0.17 * late) if "FRS" in run.name else 0.2 + 0.1 * late
            }
        if train.broken and "seed 2" in run.name and "FRS" in run.name:
            raise RuntimeError("broken")
        return {"AP": 10.0, "AP50": 20.0}

    def call(*options):
        folders = {"--runs": "runs", "--teachers": "teachers", "--docs": "docs"}
        paths = [part for name, path in folders.items() for part in (name, str(tmp_path / path))]
        paths += ["--zoo", str(tmp_path / "zoo.md")]
        (tmp_path / "zoo.md").touch()
        argv = ["ablation", "--detector", "fcos", "--seeds", "1", "2", *paths, *options]
        monkeypatch.setattr(sys, "argv", argv)
        ablation.main()
        return json.loads((tmp_path / "docs" / "shapes.json").read_text())["rows"]

    train.broken = False
    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.chdir(ROOT)
    return call, runs, train


def test_a_suite(suite):
    call, runs, _ = suite
    rows = call("--iterations", "100", "--inherit")
    keys = ("method", "budget", "iterations", "seconds_per_iter")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        (BASELINE, "iterations", 100, 0.2),
        ("FRS", "iterations", 100, 0.31),
        (BASELINE, "time", 160, 0.2),
    ]
    assert all(row["inherit"] and row["seeds"] == [1, 2] for row in rows)
    # Timing first, in two rounds; then every student under every seed; in folders of their own.
    assert ["timing" in run.name for run in runs] == [*[True] * 4, *[False] * 6]
    assert len({run.output for run in runs}) == 10
    for run in runs[4:]:
        opts = dict(zip(run.opts[::2], run.opts[1::2]))
        assert opts["DISTILL.STUDENT.INHERIT"] == "['backbone.fpn', 'head']"
        assert opts["DATASETS.TEST"] == "('d2kd_shapes_test',)"
        assert run.name.endswith(f"seed {opts['SEED']}")


def test_a_failed_training_stops_no_other(suite):
    call, runs, train = suite
    train.broken = True
    with pytest.raises(SystemExit, match="1 of 6"):
        call()
    assert len(runs) == 10


def test_unknown_methods_are_refused(suite):
    call, runs, _ = suite
    with pytest.raises(SystemExit, match="FRZ"):
        call("--only", "FRZ", "FRS", "--detector", "all")
    assert not runs


def test_a_method_leaves_out_detectors_that_lack_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablation", "--only", "TAR"])
    chosen = ablation.choose_methods(ablation.parse_args())
    assert {d: [m.name for m in methods] for d, methods in chosen.items()} == {
        "faster_rcnn": [BASELINE, "TAR"],
        "retinanet": [BASELINE, "TAR"],
    }
