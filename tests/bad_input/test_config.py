# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Configs that cannot be used: the file, the key, and what was likely meant are named."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver import build_lr_scheduler

from d2kd.config import get_value
from d2kd.config.defaults import add_d2kd_config
from d2kd.config.load import load_config, merge_file, merge_options
from d2kd.config.validation import check_config
from d2kd.engine import DistillTrainer
from d2kd.losses import DISTANCE_REGISTRY
from d2kd.modeling.build import read_teacher_config
from d2kd.utils.errors import ConfigError
from tests.common.helpers import distill_cfg, plain_cfg


def _cfg():
    cfg = get_cfg()
    add_d2kd_config(cfg)
    return cfg


@pytest.mark.parametrize(
    "text, words",
    [
        ("DISTILL: {FEATRE: {WEIGHT: 1.0}}", ["DISTILL.FEATRE Did you mean 'DISTILL.FEATURE'?"]),
        ("SOLVER: {MAXITER: 5}", ["SOLVER.MAXITER Did you mean 'SOLVER.MAX_ITER'?"]),
        ("DISTIL: {ENABLED: True}", ["DISTIL Did you mean 'DISTILL'?"]),
        ("SOLVER: {A: 1}\nMODEL: {B: 2}", ["no such keys", "  SOLVER.A", "  MODEL.B"]),
        ("SOLVER: {MAX_ITER: many}", ["Type mismatch", "'many'|many", "SOLVER.MAX_ITER"]),
        ("DISTILL: {FEATURE: {WEIGHT: 2}}", ["DISTILL.FEATURE.WEIGHT", "2.0, not 2"]),
        ("DISTILL: {LOSSES: feature}", ["Type mismatch", "DISTILL.LOSSES"]),
        ("MODEL:", ["MODEL is None, but it is a group of keys"]),
        ("SOLVER: {MAX_ITER: 5", ["not a yaml file", "line 1"]),
        (
            "SOLVER: !!python/object/apply:os.getcwd []",
            ["not a yaml file of plain values", "os.getcwd"],
        ),
        ("- SOLVER", ["holds no keys"]),
        ("", ["holds no keys"]),
    ],
)
def test_file(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        merge_file(_cfg(), str(tmp_path / "mine.yaml"))
    message = str(caught.value)
    assert "mine.yaml" in message
    assert all(any(w in message for w in word.split("|")) for word in words), message


def test_file_that_is_absent(tmp_path):
    with pytest.raises(ConfigError, match="--config-file nowhere.yaml is not there .seen"):
        merge_file(_cfg(), "nowhere.yaml")
    (tmp_path / "mine.yaml").write_text('_BASE_: "Base-absent.yaml"')
    with pytest.raises(ConfigError, match="mine.yaml: a file of its _BASE_ .*Base-absent"):
        merge_file(_cfg(), str(tmp_path / "mine.yaml"))


def test_code_in_a_file_does_not_run(tmp_path):
    spoilt = tmp_path / "spoilt"
    text = f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{spoilt}']"
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError):
        merge_file(_cfg(), str(tmp_path / "mine.yaml"))
    assert not spoilt.exists()


def test_a_file_of_an_older_version_is_upgraded(tmp_path):
    (tmp_path / "old.yaml").write_text("VERSION: 1\nMODEL: {WEIGHT: 'a.pkl'}\n")
    cfg = _cfg()
    merge_file(cfg, str(tmp_path / "old.yaml"))
    assert cfg.MODEL.WEIGHTS == "a.pkl"


def test_good_file_and_options(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 5, BASE_LR: 0.5}")
    text = "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 6}\nDATASETS: {CUSTOM: {mine: {FORMAT: coco}}}\n"
    (tmp_path / "mine.yaml").write_text(text + "DISTILL: {DISTANCES: {HUBER: {DELTA: 1.5}}}")
    cfg = _cfg()
    merge_file(cfg, str(tmp_path / "mine.yaml"))
    merge_options(cfg, ["SOLVER.IMS_PER_BATCH", "4"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (6, 0.5, 4)
    assert cfg.DATASETS.CUSTOM.mine.FORMAT == "coco" and cfg.DISTILL.DISTANCES.HUBER.DELTA == 1.5


def test_a_config_is_read_over_the_defaults_under_the_options_and_checked(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("SOLVER: {MAX_ITER: 6, BASE_LR: 0.5}")
    cfg = load_config(str(path), ["SOLVER.MAX_ITER", "7"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.DISTILL.ENABLED) == (7, 0.5, False)
    with pytest.raises(ConfigError, match="SOLVER.MAX_ITER is 0: set it to"):
        load_config(str(path), ["SOLVER.MAX_ITER", "0"])


def test_a_dotted_key_has_a_value_or_none():
    cfg = _cfg()
    assert get_value(cfg, "DISTILL.CLS.DISTANCE") == "cross_entropy"
    assert get_value(cfg, "MODEL.NOWHERE") is None and get_value(cfg, "MODEL.NO.WHERE") is None


@pytest.mark.parametrize(
    "options, words",
    [
        (["DISTILL.CLS.TEMPRATURE", "2.0"], ["Did you mean 'DISTILL.CLS.TEMPERATURE'?"]),
        (["MODEL.NOWHERE.AT_ALL", "1"], ["MODEL.NOWHERE.AT_ALL"]),
        (["SOLVER.MAX_ITER", "5", "--resume"], ["--resume comes after", "before the first KEY"]),
        (["SOLVER.MAX_ITER"], ["pairs of KEY VALUE", "1"]),
        (["SOLVER.MAX_ITER", "ten"], ["Type mismatch", "ten", "SOLVER.MAX_ITER"]),
    ],
)
def test_options(options, words):
    with pytest.raises(ConfigError) as caught:
        merge_options(_cfg(), options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("SOLVER.MAX_ITER", 0, "a number above 0"),
        ("SOLVER.IMS_PER_BATCH", -1, "a number above 0"),
        ("SOLVER.BASE_LR", float("nan"), "a number above 0"),
        ("SOLVER.ACCUMULATE_STEPS", 0, "a whole number, 1 or above"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "a whole number, 1 or above"),
        ("SOLVER.WARMUP_ITERS", -1, "a number, 0 or above"),
        ("SOLVER.WARMUP_METHOD", "liner", "Did you mean 'linear'?"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosinLR", "Did you mean 'WarmupCosineLR'?"),
        ("SOLVER.AMP.ENABLED", True, "False where MODEL.DEVICE is cpu"),
        ("TEST.COCO_EVALUATOR", "faster-coco-eval", "Did you mean 'faster_coco_eval'?"),
        ("LOG.WRITERS", ["wandb", "comet"], "any of ['wandb', 'mlflow'], each once"),
        ("TEST.STOP_AFTER", -1, "a whole number, 0 or above"),
        ("DATALOADER.BAD_IMAGES", "skp", "Did you mean 'skip'?"),
        ("DISTILL.FEATURE.WEIGHT", -1.0, "a number, 0 or above"),
        ("DISTILL.FEATURE.WEIGHT", None, "a number, 0 or above"),
        ("DISTILL.CLS.TEMPERATURE", 0.0, "a number above 0"),
        ("DISTILL.FEATURE.MASK", "gausian", "Did you mean 'gaussian'?"),
        ("DISTILL.FEATURE.DISTANCE", "sim", "Did you mean 'ssim'?"),
        ("DISTILL.FEATURE.CHANNELS", "all", "['mean', 'sum']"),
        ("DISTILL.CLS.WHERE", "positive", "Did you mean 'positives'?"),
        ("DISTILL.DISTANCES.SSIM.SIGMA", 0.0, "a number above 0"),
        ("DISTILL.TEACHER.LAYOUT", "channel_last", "Did you mean 'channels_last'?"),
        ("MODEL.DEVICE", "gpu", "'cuda', 'cuda:N' or 'cpu'"),
        ("SOLVER.OPTIMIZER", "ADAM", "Did you mean 'ADAMW'?"),
        ("DISTILL.LOSSES", ["features"], "one or more of ['feature', 'cls', 'reg']"),
        ("DISTILL.LOSSES", ["cls", "cls"], "one or more of ['feature', 'cls', 'reg'], each once"),
        ("DISTILL.FEATURE.LEVELS", ["p3", "p4", "p3"], "names of feature levels, each once"),
        ("DISTILL.FEATURE.LEVELS", [3], "names of feature levels, each once"),
        ("DISTILL.LOSSES", [], "DISTILL.ENABLED False to train without a teacher"),
        ("DISTILL.SCHEDULE.NAME", "cosin", "Did you mean 'cosine'?"),
        ("DISTILL.SCHEDULE.WARMUP_ITERS", -1, "a number, 0 or above"),
        ("DISTILL.CLS.DISTANCE", "cross-entropy", "Did you mean 'cross_entropy'?"),
        ("DISTILL.REG.DISTANCE", "distribution", "['box_loss', 'distribution_kl', 'giou', 'iou']"),
        ("DISTILL.REG.GATE", "teacher", "['none', 'proposal', 'student']"),
        ("DISTILL.DISTANCES.SSIM.SCALING", "images", "Did you mean 'image'?"),
        ("DISTILL.DISTANCES.SSIM.WINDOW", 8, "an odd whole number"),
        ("DISTILL.DISTANCES.SSIM.GAMMA", -1.0, "a number, 0 or above"),
    ],
)
def test_values_out_of_range(key, value, words):
    cfg = distill_cfg(("a.yaml", "a.pth"))
    check_config(cfg)
    with pytest.raises(ConfigError) as caught:
        check_config(distill_cfg(("a.yaml", "a.pth"), key, value))
    assert f"{key} is {value!r}: set it to" in str(caught.value) and words in str(caught.value)


def test_all_values_out_of_range_are_listed_and_unused_ones_are_not():
    spoilt = ["DISTILL.CLS.WEIGHT", -1.0, "DISTILL.REG.WEIGHT", -1.0]
    with pytest.raises(ConfigError, match="(?s)DISTILL.CLS.WEIGHT.*DISTILL.REG.WEIGHT"):
        check_config(distill_cfg(("a.yaml", "a.pth"), *spoilt))
    check_config(plain_cfg(*spoilt))


def test_values_that_do_not_go_together():
    teacher, ssim = ("a.yaml", "a.pth"), "DISTILL.DISTANCES.SSIM."
    exponents = [f"{ssim}ALPHA", 0.0, f"{ssim}BETA", 0.0, f"{ssim}GAMMA", 0.0]
    check_config(distill_cfg(teacher, *exponents[:4]))
    with pytest.raises(ConfigError, match="SSIM.ALPHA, .*SSIM.GAMMA are all 0: set one"):
        check_config(distill_cfg(teacher, *exponents))
    name, steps = ["DISTILL.SCHEDULE.NAME", "step"], ["DISTILL.SCHEDULE.STEPS", (0.9, 0.5)]
    check_config(distill_cfg(teacher, *steps))
    with pytest.raises(ConfigError, match="STEPS is .0.9, 0.5.: set it to rising fractions"):
        check_config(distill_cfg(teacher, *steps, *name))
    with pytest.raises(ConfigError, match="WARMUP_ITERS is 3: set it below SOLVER.MAX_ITER, 3"):
        check_config(distill_cfg(teacher, "DISTILL.SCHEDULE.WARMUP_ITERS", 3))


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("TEST.STOP_AFTER", 3, "TEST.STOP_AFTER is 3: set TEST.BEST_METRIC to the metric"),
        ("TEST.BEST_METRIC", "bbox/AP", "TEST.EVAL_PERIOD 0: set TEST.EVAL_PERIOD to the iter"),
        ("TEST.BEST_METRIC", "bbox/AP", "DATASETS.TEST is empty: set DATASETS.TEST to the sets"),
    ],
)
def test_a_best_checkpoint_needs_evaluations(key, value, words):
    with pytest.raises(ConfigError, match=words):
        check_config(plain_cfg(key, value))
    every = ["TEST.EVAL_PERIOD", 2, "DATASETS.TEST", ("mine",)]
    check_config(plain_cfg("TEST.BEST_METRIC", "bbox/AP", "TEST.STOP_AFTER", 3, *every))


def test_half_precision_is_for_gpus():
    check_config(plain_cfg("SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cuda:1"))


def test_every_schedule_of_this_detectron2_is_known():
    for name in ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"):
        cfg = plain_cfg("SOLVER.LR_SCHEDULER_NAME", name)
        try:
            build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], 0.1))
        except ValueError:
            with pytest.raises(ConfigError, match=name):
                check_config(cfg)
        else:
            check_config(cfg)


@pytest.mark.usefixtures("train_set")
@pytest.mark.parametrize("warmup, warned", [(2, False), (3, True)])
def test_a_warmup_that_never_ends_is_warned_of(tmp_path, caplog, warmup, warned):
    cfg = plain_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.WARMUP_ITERS", warmup)
    check_config(cfg)
    DistillTrainer(cfg)
    assert ("SOLVER.WARMUP_ITERS is 3 and SOLVER.MAX_ITER 3" in caplog.text) == warned


def test_a_teachers_file_is_read_as_carefully(tmp_path):
    (tmp_path / "teacher.yaml").write_text("MODEL: {RESNET: {DEPTH: 101}}")
    cfg = distill_cfg((tmp_path / "teacher.yaml", "a.pth"))
    with pytest.raises(ConfigError, match="(?s)teacher.yaml.*MODEL.RESNET Did you mean"):
        read_teacher_config(cfg)


@pytest.mark.parametrize(
    "group, words",
    [
        ("MASKS: {GAUSIAN: {SIGMA2: 9.0}}", "MASKS.GAUSIAN: .* Did you mean 'GAUSSIAN'?"),
        ("DISTANCES: {ssim: {WINDOW: 7}}", "DISTANCES.ssim: .* Did you mean 'SSIM'?"),
        ("MASKS: {SSIM: {WINDOW: 7}}", "DISTILL.MASKS.SSIM: nothing of that name is registered"),
    ],
)
def test_parameters_of_a_mask_or_distance_that_is_not_there(tmp_path, group, words):
    (tmp_path / "mine.yaml").write_text(f"DISTILL: {{{group}}}")
    with pytest.raises(ConfigError, match=words):
        load_config(str(tmp_path / "mine.yaml"))


def test_parameters_of_a_distance_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("DISTILL: {DISTANCES: {MINE: {DELTA: 1.5}}}")
    with pytest.raises(ConfigError, match="DISTANCES.MINE"):
        load_config(str(tmp_path / "mine.yaml"))
    monkeypatch.setitem(DISTANCE_REGISTRY._obj_map, "mine", lambda student, teacher: None)
    assert load_config(str(tmp_path / "mine.yaml")).DISTILL.DISTANCES.MINE.DELTA == 1.5
