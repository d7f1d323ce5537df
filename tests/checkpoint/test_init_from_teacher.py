# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Starting from the teacher's weights: copied where they fit, said, and refused where none fits."""

import logging

import pytest
import torch
from detectron2.modeling import build_model

from d2kd.checkpoint.init_from_teacher import init_from_teacher
from d2kd.utils.errors import PairMismatchError
from tests.common.helpers import plain_cfg, spread

SAME_FPN = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 32]


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return build_model(plain_cfg()), spread(build_model(plain_cfg(*SAME_FPN)))


def test_copies_what_fits_under_the_prefixes_and_nothing_else(pair):
    student, teacher = pair
    before = {k: v.clone() for k, v in student.state_dict().items()}
    copied = init_from_teacher(student, teacher, ["backbone.fpn", "proposal_generator"])
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert (
        "backbone.fpn_output2.weight" in copied
        and "proposal_generator.rpn_head.conv.bias" in copied
    )
    assert "backbone.fpn_lateral2.weight" not in copied, "it reads another number of channels"
    for name in ours:
        expected = theirs if name in copied else before
        assert torch.equal(ours[name], expected[name]), name
    assert any(not torch.equal(before[name], theirs[name]) for name in copied)
    assert all(name.startswith(("backbone.fpn", "proposal_generator")) for name in copied)


def test_buffers_are_inherited_too(pair):
    student, teacher = pair
    copied = init_from_teacher(student, teacher, ["backbone.bottom_up.stem"])
    name = "backbone.bottom_up.stem.conv1.norm.running_var"
    assert name in copied
    assert torch.equal(student.state_dict()[name], teacher.state_dict()[name])


def test_the_student_owns_its_copy(pair):
    student, teacher = pair
    init_from_teacher(student, teacher, ["roi_heads"])
    name = "roi_heads.box_head.fc1.weight"
    with torch.no_grad():
        student.get_parameter(name).add_(1)
    assert not torch.equal(student.get_parameter(name), teacher.get_parameter(name))
    assert student.get_parameter(name).requires_grad


def test_says_what_was_copied_and_what_was_kept(pair, caplog):
    with caplog.at_level(logging.INFO, logger="d2kd"):
        init_from_teacher(*pair, ["backbone.fpn"])
    assert "backbone.fpn" in caplog.text and "backbone.fpn_lateral5.weight" in caplog.text


@pytest.mark.parametrize("prefix", ["backbone.nowhere", "backbone.fpn_lateral2.weight"])
def test_a_prefix_without_effect_is_an_error(pair, prefix):
    with pytest.raises(PairMismatchError, match=f"INHERIT: .* begin with '{prefix}'.*take it out"):
        init_from_teacher(*pair, [prefix])
