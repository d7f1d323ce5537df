# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The line of a training on a terminal, and Detectron2's log lines elsewhere."""

import logging
import re
import sys

import pytest
from detectron2.config import CfgNode
from detectron2.engine.hooks import PeriodicWriter

from d2kd.data import register_custom_datasets
from d2kd.engine import DistillTrainer, progress_line
from d2kd.engine.progress_line import ProgressLine
from tests.common.helpers import distill_cfg, plain_cfg, write_coco_set
from tests.common.terminal import screen, terminal


@pytest.fixture
def sets(tmp_path, clean_catalogs):
    (tmp_path / "pictures").mkdir()
    return CfgNode({"mine": write_coco_set(tmp_path / "pictures")})


def _train(cfg, sets, folder, monkeypatch):
    """Everything that the terminal gets."""
    cfg.DATASETS.CUSTOM, cfg.OUTPUT_DIR = sets, str(folder / "out")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("mine",)
    register_custom_datasets(cfg)
    monkeypatch.setattr(progress_line, "PERIOD", 0.0)
    logger = logging.getLogger("detectron2")
    with terminal() as text:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("ours: %(message)s"))
        logger.addHandler(handler)
        try:
            DistillTrainer(cfg).train()
        finally:
            logger.removeHandler(handler)
    return text[0]


def test_the_line_says_what_a_reader_waits_for(teacher_files, sets, tmp_path, monkeypatch):
    opts = ["SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 3, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    text = _train(distill_cfg(teacher_files, *opts), sets, tmp_path, monkeypatch)
    lines = [part.strip() for part in re.split("[\r\n]", text) if part.startswith("iter ")]
    assert lines[0].startswith("iter 1/6  eta -  loss ") and "AP" not in lines[0]
    number = r"\d+\.\d+"
    last = rf"iter 6/6  eta 0:00:00  loss {number}  distill/detection {number}  AP {number}"
    assert re.match(last, lines[-1]) and max(map(len, lines)) < 80
    shown = screen(text)
    assert not [line for line in shown if line.startswith(("iter", "evaluating"))]
    # pycocotools prints, Detectron2 logs: each begins a line of its own.
    assert len([line for line in shown if "Average Precision" in line]) == 2 * 6
    assert all(line.startswith(" Average") for line in shown if "Average Precision" in line)
    assert not [line for line in shown if "eta: " in line or "Inference done" in line]
    assert len([line for line in shown if line == "ours: Start inference on 4 batches"]) == 2
    assert text.count("evaluating mine") >= 2


def test_a_baseline_has_no_ratio(sets, tmp_path, monkeypatch):
    text = _train(plain_cfg("SOLVER.MAX_ITER", 2), sets, tmp_path, monkeypatch)
    assert "iter 2/2  eta -  loss " in text and "distill" not in text and "  rpn_cls " in text


def test_elsewhere_there_are_log_lines(sets, tmp_path, train_set):
    trainer = DistillTrainer(plain_cfg("OUTPUT_DIR", str(tmp_path)))
    kinds = [type(hook) for hook in trainer._hooks]
    assert ProgressLine not in kinds and PeriodicWriter in kinds
