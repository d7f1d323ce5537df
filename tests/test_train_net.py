# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The training script as a user calls it: distil, resume, evaluate."""

import json
import subprocess
import sys

import pytest
import torch
from detectron2.config import CfgNode

import train_net
from d2kd.utils.errors import ConfigError, PairMismatchError, WeightsError
from tests.common import ROOT
from tests.common.helpers import distill_cfg, plain_cfg, write_coco_set, write_teacher


def _write_config(folder, *opts):
    """A config file of a distilled student on a declared data set; (yaml, teacher's files)."""
    files = write_teacher(folder / "teacher")
    (folder / "pictures").mkdir()
    cfg = distill_cfg(files, "OUTPUT_DIR", str(folder / "out"), "SOLVER.MAX_ITER", 3, *opts)
    cfg.DATASETS.CUSTOM = CfgNode({"tiny": write_coco_set(folder / "pictures")})
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("tiny",)
    (folder / "student.yaml").write_text(cfg.dump())
    return folder / "student.yaml", files


def _call(config, *args):
    command = [sys.executable, "train_net.py", "--config-file", str(config), *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, yaml, teacher's files, printed text) of three distilled iterations."""
    folder = tmp_path_factory.mktemp("train_net")
    config, files = _write_config(folder)
    code, text = _call(config, "--eval-teacher")
    assert code == 0, text[-3000:]
    return folder, config, files, text


def test_distils_and_says_what_it_does(trained):
    folder, _, files, text = trained
    assert f"teacher weights {files[1]}" in text and "0 missing" in text
    for word in ("eta: ", "loss_distill_feature: ", "loss_weight/cls: ", "loss_ratio/reg: "):
        assert word in text
    rows = (folder / "out" / "metrics.json").read_text().splitlines()
    row = {key: value for line in rows for key, value in json.loads(line).items()}
    assert {"bbox/AP", "bbox/AP50", "bbox/AP75", "loss_distill_cls", "loss_ratio/cls"} <= set(row)
    assert list((folder / "out").glob("events.out.tfevents.*"))
    assert (folder / "out" / "teacher").is_dir(), "the teacher was evaluated"


def test_evaluates_the_student_without_its_teacher(trained):
    folder, config, files, _ = trained
    aside = files[1].rename(folder / "aside.pth")
    try:
        weights = folder / "out" / "model_final.pth"
        code, text = _call(
            config, "--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", folder / "e"
        )
    finally:
        aside.rename(files[1])
    assert code == 0, text[-3000:]
    assert "AP50" in text and "teacher weights" not in text
    assert "not be found in the checkpoint" not in text, "every weight was in the file"


def test_resumes(trained):
    folder, config, _, _ = trained
    code, text = _call(config, "--resume", "SOLVER.MAX_ITER", 4)
    assert code == 0, text[-3000:]
    assert "Starting training from iteration 3" in text
    assert torch.load(folder / "out" / "model_final.pth")["iteration"] == 3


def test_wrong_keys_stop_before_training(trained, tmp_path):
    code, text = _call(trained[1], "MODEL.ROI_HEADS.NUM_CLASSES", 3, "OUTPUT_DIR", tmp_path)
    assert code == 2 and "Set MODEL.ROI_HEADS.NUM_CLASSES to 4" in text.splitlines()[-1]
    assert "Traceback" not in text
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("options", [[], ["--num-processes", 2], ["--traceback"]])
def test_a_wrong_key_is_one_message_and_status_2(tmp_path, options):
    config = ROOT / "configs/shapes/TAR/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml"
    code, text = _call(config, *options, "OUTPUT_DIR", tmp_path, "SOLVER.BASE_LRR", 1)
    assert code == 2 and "SOLVER.BASE_LRR" in text
    assert ("Traceback" in text) == ("--traceback" in options)


def test_evaluating_nothing_is_an_error(tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(ConfigError, match="set MODEL.WEIGHTS to its checkpoint"):
        train_net.eval_student(plain_cfg(*opts), resume=False)
    with pytest.raises(WeightsError, match="MODEL.WEIGHTS nowhere.pth is not there"):
        train_net.eval_student(plain_cfg(*opts, "MODEL.WEIGHTS", "nowhere.pth"), resume=False)


@pytest.fixture
def evaluated(monkeypatch):
    """The weights of the students that are evaluated."""
    models = []
    monkeypatch.setattr(
        train_net.DistillTrainer, "test", lambda _, model: models.append(model.state_dict())
    )
    return models


def test_resume_evaluates_the_last_checkpoint_or_nothing(tmp_path, evaluated):
    pretrained = write_teacher(tmp_path / "pretrained")[1]
    cfg = plain_cfg("OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(pretrained))
    with pytest.raises(ConfigError, match=f"no last_checkpoint in OUTPUT_DIR {tmp_path}: set"):
        train_net.eval_student(cfg, resume=True)
    student = train_net.DistillTrainer.build_model(cfg).state_dict()
    torch.save({"model": student}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    train_net.eval_student(cfg, resume=True)
    assert all(torch.equal(found, student[name]) for name, found in evaluated[0].items())


@pytest.mark.parametrize("resume", [False, True])
def test_a_student_of_whom_tensors_are_missing_is_not_evaluated(tmp_path, evaluated, resume):
    cfg = plain_cfg("OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(tmp_path / "a.pth"))
    student = train_net.DistillTrainer.build_model(cfg).state_dict()
    rpn = {name: value for name, value in student.items() if name.startswith("proposal_generator")}
    for kept in ({"of.another": torch.ones(1)}, {k: student[k] for k in student if k not in rpn}):
        torch.save({"model": kept}, tmp_path / "a.pth")
        (tmp_path / "last_checkpoint").write_text("a.pth")
        with pytest.raises(
            WeightsError, match="the student is incomplete: MODEL.WEIGHTS"
        ) as caught:
            train_net.eval_student(cfg, resume)
        assert f"student weights {tmp_path}/a.pth: " in str(caught.value)
    assert f", {len(rpn)} missing" in str(caught.value)
    assert f"  missing: {next(iter(rpn))}\n" in str(caught.value)
    assert not evaluated


def test_the_teacher_is_evaluated_in_its_own_format_and_leaves_the_random_streams(
    tmp_path, monkeypatch
):
    files = write_teacher(tmp_path, "INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", 80)
    evaluated = []
    monkeypatch.setattr(
        train_net.DistillTrainer, "test", lambda *args: evaluated.append(args) or torch.rand(9)
    )
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train_net.eval_teacher(distill_cfg(files))
    assert torch.equal(torch.rand(3), expected)
    ((cfg, model),) = evaluated
    assert (cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST) == ("RGB", 80)
    assert not model.training and cfg.OUTPUT_DIR.endswith("teacher")


def test_a_teacher_below_the_threshold_stops_the_training(trained, tmp_path):
    _, config, files, _ = trained
    code, text = _call(config, "--eval-teacher", 90, "OUTPUT_DIR", tmp_path)
    assert code == 2 and "Traceback" not in text
    last = text.strip().splitlines()[-1]
    assert "box AP is" in last and "below the 90 that --eval-teacher asks for: check" in last
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    "words, least, opts",
    [
        (["--eval-teacher"], None, []),
        (["--eval-teacher", "30.5"], 30.5, []),
        (["--eval-teacher=30", "SEED", "2"], 30.0, ["SEED", "2"]),
        (["--eval-teacher", "SEED", "2"], None, ["SEED", "2"]),
        (["--eval-teacher", "--resume", "SEED", "2"], None, ["SEED", "2"]),
    ],
)
def test_the_threshold_may_be_left_out(monkeypatch, words, least, opts):
    monkeypatch.setattr(sys, "argv", ["train_net.py", *words])
    args = train_net.parse_args()
    assert (args.eval_teacher, args.least_teacher_ap, args.opts) == (True, least, opts)


@pytest.mark.parametrize("ap, stops", [(41.0, False), (39.0, True), (float("nan"), True)])
def test_every_test_set_counts(ap, stops):
    results = {"a": {"bbox": {"AP": 50.0}}, "b": {"bbox": {"AP": ap}}}
    if not stops:
        return train_net.check_teacher_ap(results, 40.0, "teacher.pth")
    with pytest.raises(PairMismatchError, match=f"50.0 on a, {ap:.1f} on b, below the 40 that"):
        train_net.check_teacher_ap(results, 40.0, "teacher.pth")


def test_a_student_is_not_evaluated_on_classes_in_another_order(trained, tmp_path):
    folder, config, _, _ = trained
    content = torch.load(folder / "out" / "model_final.pth")
    content["classes"]["names"].reverse()
    torch.save(content, tmp_path / "other.pth")
    code, text = _call(config, "--eval-only", "MODEL.WEIGHTS", tmp_path / "other.pth")
    assert code == 2 and "was trained on the classes class 3, class 2" in text
