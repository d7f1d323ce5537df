# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Parts are looked at where a loss reads them; a refusal says why, and its advice works."""

import pytest
from detectron2.modeling.box_regression import Box2BoxTransformRotated
from detectron2.modeling.proposal_generator.rrpn import RRPN
from torch import nn

from d2kd.config.detectors import get_detector
from d2kd.modeling.build import build_student
from d2kd.modeling.compatibility import check_pair
from d2kd.modeling.head_checks import check_heads
from d2kd.modeling.paired_forward.registry import get_paired_forward
from d2kd.utils.errors import ConfigError, PairMismatchError
from tests.common.architectures import ARCHITECTURES
from tests.common.helpers import build_distiller, distill_cfg, plain_cfg, write_teacher

FEATURES, DENSE = frozenset({"features"}), frozenset({"features", "dense_logits"})
LOGITS, DELTAS = frozenset({"logits"}), frozenset({"deltas"})
RICHNESS = ["DISTILL.LOSSES", ["feature"], "DISTILL.FEATURE.MASK", "richness"]


def _build(name):
    return build_student(plain_cfg(*ARCHITECTURES[name]))


def _refuse(student, teacher, requires, message, union=False):
    with pytest.raises(PairMismatchError, match=message):
        check_heads(student, teacher, requires, union)
    check_heads(student, teacher, FEATURES, False)


def test_proposals_of_the_data_have_no_rpn_to_read():
    fast, standard = _build("fast"), _build("standard")
    check_heads(fast, standard, LOGITS | DELTAS, False)
    said = "the student's proposals come from the data.*: set DISTILL.PROPOSALS to 'student'"
    _refuse(fast, standard, LOGITS, said, union=True)
    _refuse(standard, fast, DENSE, "the teacher's proposals come .*: set DISTILL.FEATURE.MASK")
    standard.proposal_generator = nn.Identity()
    _refuse(standard, standard, DENSE, "proposals are Identity's, not from an RPN")


def test_rotated_boxes_are_refused():
    student, teacher = _build("standard"), _build("standard")
    transform = Box2BoxTransformRotated(weights=(10.0, 10.0, 5.0, 5.0, 1.0))
    teacher.roi_heads.box_predictor.box2box_transform = transform
    said = "teacher's StandardROIHeads predicts rotated boxes.*set DISTILL.LOSSES to a list without"
    _refuse(student, teacher, LOGITS | DELTAS, said)
    student.proposal_generator = RRPN.__new__(RRPN)
    nn.Module.__init__(student.proposal_generator)
    with pytest.raises(PairMismatchError, match="student's RRPN has rotated boxes.*ENABLED False"):
        check_heads(student, teacher, FEATURES, False)
    check_heads(teacher, student, FEATURES, False)


def test_sigmoid_scores_are_not_compared_and_boxes_beside_them_are():
    student, teacher = _build("standard"), _build("standard")
    teacher.roi_heads.box_predictor.use_sigmoid_ce = True  # of Detectron2's main branch
    said = "teacher's StandardROIHeads scores classes by sigmoids.*: set DISTILL.LOSSES to .*'cls'"
    _refuse(student, teacher, LOGITS | DELTAS, said)
    check_heads(student, teacher, DELTAS, False)


def test_predictors_of_another_interface_are_refused():
    student, teacher = _build("cascade"), _build("standard")
    student.roi_heads.box_predictor[1] = nn.Identity()
    said = "student's CascadeROIHeads has no box_predictor that extends FastRCNNOutputLayers"
    _refuse(student, teacher, DELTAS, said)


@pytest.mark.parametrize(
    "name, requires, message",
    [
        (
            "rpn",
            LOGITS | DELTAS,
            "^ProposalNetwork has no deltas: .*; ProposalNetwork has no logit",
        ),
        ("semantic", DENSE, "^SemanticSegmentor has no dense_logits: set DISTILL.FEATURE.MASK"),
        ("semantic", FEATURES, "without boxes, .*mask 'gaussian' reads: set DISTILL.FEATURE.MASK"),
    ],
)
def test_what_a_detector_does_not_have_is_named(name, requires, message):
    cfg = plain_cfg(*ARCHITECTURES[name])
    with pytest.raises(ConfigError, match=message):
        check_pair(cfg, cfg, requires)
    cfg.DISTILL.FEATURE.MASK = "uniform"
    check_pair(cfg, cfg, FEATURES)


@pytest.mark.parametrize("teacher", ["rpn", "cascade", "panoptic"])
def test_an_rpn_alone_reads_the_objectness_of_any_rpn(tmp_path, teacher):
    files = write_teacher(tmp_path, *ARCHITECTURES[teacher])
    for student in ("rpn", "standard"):
        model = build_distiller(distill_cfg(files, *ARCHITECTURES[student], *RICHNESS))
        assert model.required.requires == DENSE


def test_a_detector_with_no_row_is_distilled_by_features():
    cfg = plain_cfg(*ARCHITECTURES["semantic"])
    assert get_paired_forward(cfg).__name__ == "forward_pair_features"
    assert get_detector(cfg).outputs == frozenset()
