# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A student starts from weights that fit, and nothing stays random for ever unsaid."""

import logging
import re

import pytest
import torch
from detectron2.modeling import build_model

from d2kd.checkpoint.start import describe_frozen_random
from d2kd.doctor import model_checks
from d2kd.doctor.finding import Status
from d2kd.engine import DistillTrainer
from d2kd.utils.errors import WeightsError
from tests.common.helpers import distill_cfg, plain_cfg

ALLOW = "MODEL.ALLOW_UNMATCHED_WEIGHTS"


def _student_state(*opts):
    torch.manual_seed(0)
    return build_model(plain_cfg(*opts)).state_dict()


def _start(tmp_path, content, *opts, cfg=plain_cfg):
    torch.save(content, tmp_path / "start.pth")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "start.pth")]
    trainer = DistillTrainer(cfg(*weights, "OUTPUT_DIR", str(tmp_path / "out"), *opts))
    trainer.resume_or_load(resume=False)
    return trainer


def _some_of(state, backbone, of=10):
    """A share of the backbone's tensors, and all of the heads."""
    names = [name for name in state if name.startswith("backbone.bottom_up")]
    kept = {name for i, name in enumerate(names) if i % of < backbone}
    return {n: v for n, v in state.items() if n in kept or not n.startswith("backbone")}


@pytest.mark.parametrize(
    "content, words",
    [
        (lambda s: {"layer1.weight": torch.zeros(3)}, "0 of 293 tensors.*file holds 1 tensors: la"),
        (lambda s: {"meta": {"x": 1}, "state_dict": {"conv1.w": torch.zeros(3)}}, "meta, state_d"),
        (lambda s: {"model": _some_of(s, 4)}, "of the 265 tensors of the backbone"),
        (lambda s: {"model": {n: v for n, v in s.items() if "roi_heads" in n}}, "0 of the 265"),
        (lambda s: {"epoch": 3}, "no dict of tensors; it has epoch"),
        (lambda s: [1, 2], "a list, not a dict"),
        (lambda s: {}, "nothing"),
    ],
)
def test_too_little_of_the_student_stops_the_training(tmp_path, train_set, content, words):
    with pytest.raises(WeightsError, match=f"(?s)MODEL.WEIGHTS .*start.pth.*{words}"):
        _start(tmp_path, content(_student_state()))


def test_the_doctor_says_the_same(tmp_path, train_set):
    content = {"model": _some_of(_student_state(), 4)}
    with pytest.raises(WeightsError) as caught:
        _start(tmp_path, content)
    cfg = plain_cfg("MODEL.WEIGHTS", str(tmp_path / "start.pth"))
    _, _, found = model_checks.load_start(cfg, build_model(cfg))
    assert found.status is Status.ERROR and found.text == str(caught.value)


def test_a_key_allows_it(tmp_path, train_set):
    trainer = _start(tmp_path, {"other": torch.zeros(3)}, ALLOW, True)
    assert not [x for x in trainer.checkpointer.loaded.matched if x.endswith("weight")]


def test_half_of_the_backbone_is_enough(tmp_path, train_set):
    state = _student_state("MODEL.ROI_HEADS.NUM_CLASSES", 9)
    _start(tmp_path, {"model": _some_of(state, 6)})


def test_what_is_inherited_need_not_be_in_the_file(tmp_path, train_set, teacher_files):
    heads = {n: v for n, v in _student_state().items() if "roi_heads" in n}

    def cfg(*opts):
        return distill_cfg(teacher_files, *opts)

    with pytest.raises(WeightsError, match="0 of the 265"):
        _start(tmp_path, heads, cfg=cfg)
    _start(tmp_path, heads, "DISTILL.STUDENT.INHERIT", ["backbone"], cfg=cfg)


def _warning(caplog):
    return [x.getMessage() for x in caplog.records if "for ever" in x.getMessage()]


@pytest.mark.parametrize(
    "opts, words",
    [
        (["MODEL.BACKBONE.FREEZE_AT", 2], "11 frozen convolutions .*FrozenBN layers.*FREEZE_AT to"),
        (["MODEL.RESNETS.NORM", "FrozenBN"], "^53 FrozenBN layers .*MODEL.RESNETS.NORM to"),
        (["MODEL.FPN.NORM", "FrozenBN"], "FrozenBN layers .*MODEL.FPN.NORM to"),
    ],
)
def test_frozen_random_layers_are_said(tmp_path, train_set, caplog, opts, words):
    trainer = DistillTrainer(plain_cfg("OUTPUT_DIR", str(tmp_path), *opts))
    with caplog.at_level(logging.WARNING, "d2kd"):
        trainer.resume_or_load(resume=False)
    (text,) = _warning(caplog)
    assert re.search(words, text), text
    assert text == describe_frozen_random(trainer.cfg, trainer.model, ())
    (found,) = model_checks.check_frozen(trainer.cfg, trainer.model, ())
    assert found.status is Status.WARNING and found.advice.startswith("Set MODEL.WEIGHTS")


def test_the_advice_ends_the_warning(tmp_path, train_set):
    opts = ["MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.NORM", "BN"]
    cfg = plain_cfg(*opts)
    assert describe_frozen_random(cfg, build_model(cfg), ()) == ""


def test_weights_end_the_warning_where_they_reach(tmp_path, train_set, caplog):
    state = _student_state("MODEL.RESNETS.NORM", "FrozenBN")
    opts = ["MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.RESNETS.NORM", "FrozenBN"]
    with caplog.at_level(logging.WARNING, "d2kd"):
        _start(tmp_path, state, *opts)
        assert not _warning(caplog)
        _start(tmp_path, {n: v for n, v in state.items() if "bottom_up.stem" not in n}, *opts)
    assert "1 frozen convolutions (first backbone.bottom_up.stem.conv1)" in _warning(caplog)[0]


def test_inheriting_counts_only_what_was_copied(tmp_path, train_set, teacher_files, caplog):
    opts = ["MODEL.BACKBONE.FREEZE_AT", 3, "OUTPUT_DIR", str(tmp_path)]
    inherit = ["DISTILL.STUDENT.INHERIT", ["backbone.bottom_up.stem"]]
    trainer = DistillTrainer(distill_cfg(teacher_files, *opts, *inherit))
    with caplog.at_level(logging.WARNING, "d2kd"):
        trainer.resume_or_load(resume=False)
    # The stem has the teacher's width, the stages have not.
    assert "23 frozen convolutions (first backbone.bottom_up.res2" in _warning(caplog)[0]
