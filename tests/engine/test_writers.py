# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""LOG.WRITERS: what reaches Weights & Biases and MLflow, here as modules that write it down."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest

from d2kd.engine import DistillTrainer
from d2kd.utils.errors import ConfigError, D2kdError
from tests.common.helpers import plain_cfg

pytestmark = pytest.mark.usefixtures("train_set")


class _Wandb:
    def __init__(self):
        self.runs = []

    def init(self, **kwargs):
        run = SimpleNamespace(id=kwargs["id"] or f"id{len(self.runs)}", given=kwargs, rows={})
        run.twice = []

        def log(values, step):
            row = run.rows.setdefault(step, {})
            run.twice += set(row) & set(values)
            row.update(values)

        run.log = log
        run.finish = lambda: setattr(run, "finished", True)
        self.runs.append(run)
        return run


class _Mlflow:
    def __init__(self):
        self.runs, self.texts, self.rows, self.open = [], {}, {}, False

    def start_run(self, run_id=None, run_name=None):
        self.runs.append((run_id, run_name))
        self.open = True
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "hex"))

    def log_text(self, text, name):
        self.texts[name] = text

    def log_metrics(self, values, step):
        self.rows.setdefault(step, {}).update(values)

    def end_run(self):
        self.open = False


@pytest.fixture
def packages(monkeypatch):
    found = {"wandb": _Wandb(), "mlflow": _Mlflow()}
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(**found)


def _train(folder, *opts, resume=False):
    trainer = DistillTrainer(
        plain_cfg("LOG.WRITERS", ["wandb", "mlflow"], "OUTPUT_DIR", str(folder), *opts)
    )
    trainer.resume_or_load(resume=resume)
    trainer.train()


def test_both_get_every_metric_once_under_its_iteration(packages, tmp_path):
    _train(tmp_path / "mine", "SOLVER.MAX_ITER", 41)
    (run,) = packages.wandb.runs
    assert run.finished and not packages.mlflow.open
    rows = [json.loads(x) for x in (tmp_path / "mine/metrics.json").read_text().splitlines()]
    expected = {row.pop("iteration"): row for row in rows}
    assert sorted(expected)[:2] == [19, 39] and "total_loss" in expected[39]
    assert run.rows == packages.mlflow.rows == expected and run.twice == []
    assert run.given["name"] == "mine" and run.given["config"]["SOLVER"]["MAX_ITER"] == 41
    assert packages.mlflow.runs == [(None, "mine")]
    assert "MAX_ITER: 41" in packages.mlflow.texts["config.yaml"]


def test_a_resumed_training_goes_on_with_its_runs(packages, tmp_path):
    _train(tmp_path)
    _train(tmp_path, "SOLVER.MAX_ITER", 5, resume=True)
    assert [run.id for run in packages.wandb.runs] == ["id0", "id0"]
    assert packages.wandb.runs[1].given["resume"] == "allow"
    assert packages.mlflow.runs[1] == ("hex", None)
    _train(tmp_path)  # anew, in the same folder
    assert packages.wandb.runs[2].id == "id2" and packages.mlflow.runs[2][0] is None


def test_names_that_mlflow_does_not_allow(packages, tmp_path):
    _train(tmp_path)
    names = {name for row in packages.mlflow.rows.values() for name in row}
    assert names and "total_loss" in names
    from d2kd.engine.writers import MlflowWriter

    writer = MlflowWriter(plain_cfg())
    writer.send({"bbox/AP-cat & dog (big)": 1.0}, 3)
    assert packages.mlflow.rows[3] == {"bbox/AP-cat _ dog _big_": 1.0}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_named_before_anything_is_built(
    tmp_path, monkeypatch, name
):
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cfg = plain_cfg("LOG.WRITERS", [name], "OUTPUT_DIR", str(tmp_path))
    monkeypatch.setattr(DistillTrainer, "build_model", None)
    with pytest.raises(ConfigError, match=f"LOG.WRITERS has '{name}'.*run pip install {name}"):
        DistillTrainer(cfg)


def test_a_run_that_cannot_begin_stops_the_training_before_its_first_step(
    packages, tmp_path, monkeypatch
):
    def refuse(**kwargs):
        raise PermissionError("no API key.\nRun wandb login")

    monkeypatch.setattr(packages.wandb, "init", refuse)
    monkeypatch.setattr(DistillTrainer, "run_step", None)
    with pytest.raises(D2kdError, match="'wandb', which cannot begin a run: no API key. Correct"):
        _train(tmp_path)
    assert not packages.mlflow.open


def test_a_server_that_is_away_costs_a_warning(packages, tmp_path, monkeypatch, caplog):
    plain, failed = packages.mlflow.log_metrics, []

    def fail_once(values, step):
        if not failed:
            failed.append(step)
            raise ConnectionError("no route to host")
        plain(values, step)

    monkeypatch.setattr(packages.mlflow, "log_metrics", fail_once)
    _train(tmp_path, "SOLVER.MAX_ITER", 21)
    assert "mlflow (LOG.WRITERS) got no metrics: no route to host" in caplog.text
    assert failed == [19] and "total_loss" in packages.mlflow.rows[20]
