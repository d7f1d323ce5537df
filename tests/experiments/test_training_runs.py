# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Results are read back as Detectron2 wrote them, and kept only under the same settings."""

import json

import pytest
import torch
from detectron2.config import get_cfg

from d2kd.config.defaults import add_d2kd_config
from d2kd.config.student import student_config
from experiments import training_runs as runs
from experiments.shrink_checkpoint import main as shrink_main
from experiments.shrink_checkpoint import shrink
from experiments.training_runs import Run, cached_result, execute, metrics, progress

LINE = (
    "[11/21 00:56:44 d2.utils.events]:  eta: 0:12:38  iter: 19  total_loss: 3.1  loss_cls: 0.25  "
    "loss_distill_cls: 1.5  loss_weight/cls: 0.9  time: 0.31  lr: 0.001  \n"
)


def test_metrics_leaves_out_warm_up_and_takes_the_last_evaluation(tmp_path):
    rows = [{"iteration": i, "time": time} for i, time in enumerate([9.0, 0.2, 0.4, 0.3])]
    for ap in (10.0, 20.0):
        rows.append({"bbox/AP": ap, "bbox/AP50": ap + 1, "bbox/AP75": ap + 2, "bbox/APs": 0.0})
    path = tmp_path / "metrics.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = {"seconds_per_iter": 0.3, "AP": 20.0, "AP50": 21.0, "AP75": 22.0}
    assert metrics(path) == expected
    path.write_text(json.dumps(rows[0]) + "\n")
    assert metrics(path) == {"seconds_per_iter": 9.0}


def test_progress_shows_losses_and_time_left():
    short = progress(LINE, every=20)
    assert short == "iter    20  eta 0:12:38  loss 3.100 = cls 0.25 + distill_cls 1.5"
    assert progress(LINE, every=100) == ""
    assert progress("[11/21 00:56:44 d2.data.build]: Removed 0 images\n", every=20) == ""


def test_remember_computes_once_for_each_setting(tmp_path):
    folder, calls = tmp_path / "run", []

    def compute():
        calls.append(sorted(path.name for path in folder.iterdir()))
        (folder / "weights").write_text("")
        return {"AP": len(calls)}

    assert [cached_result(folder, {"seed": (1,)}, compute) for _ in range(2)] == [{"AP": 1}] * 2
    assert cached_result(folder, {"seed": (2,)}, compute) == {"AP": 2}
    assert calls == [[], []], "an older run's files were left to the new one"


def test_remember_starts_an_unfinished_run_again(tmp_path):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_result(tmp_path / "run", {}, fail)
    assert cached_result(tmp_path / "run", {}, lambda: {"AP": 1.0}) == {"AP": 1.0}


def test_a_failed_training_says_why(tmp_path):
    config = "configs/shapes/baseline/faster_rcnn_R_50_eighth_800.yaml"
    run = Run("bad", config, tmp_path, ("SOLVER.NO_SUCH_KEY", "1"))
    with pytest.raises(RuntimeError, match="(?s)train_net.py .* ended with 2.*NO_SUCH_KEY"):
        execute(run)


def test_shrink_halves_and_keeps_counters(tmp_path):
    state = {"weight": torch.rand(3), "bn.num_batches_tracked": torch.tensor(70000)}
    source, target = tmp_path / "model_final.pth", tmp_path / "small.pth"
    torch.save({"model": state, "optimizer": {}, "iteration": 7}, source)
    shrink_main([str(source), str(target)])
    found = torch.load(target, weights_only=True)
    assert list(found) == ["model"]
    assert found["model"]["weight"].dtype == torch.float16
    torch.testing.assert_close(found["model"]["weight"].float(), state["weight"], atol=1e-3, rtol=0)
    assert found["model"]["bn.num_batches_tracked"] == 70000


def test_shrink_refuses_what_float16_cannot_hold():
    with pytest.raises(ValueError, match="running_var"):
        shrink({"bn.running_var": torch.tensor([1e6])})


@pytest.mark.parametrize("detector", ["faster_rcnn", "fcos", "gfl"])
def test_students_are_counted_whoever_has_their_keys(detector, tmp_path):
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_file(str(runs.ROOT / f"configs/_base_/detectors/{detector}_shapes.yaml"))
    (tmp_path / "student.yaml").write_text(student_config(cfg).dump())
    assert runs._student_params(tmp_path) == runs.count_params(cfg) > 10**5
