# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What does not fit between student and teacher is named, with its key, before the first step."""

from types import SimpleNamespace

import pytest
from detectron2.layers import ShapeSpec

from d2kd.config.detectors import DETECTORS, Detector
from d2kd.modeling import Distiller
from d2kd.modeling.compatibility import check_dense_levels, check_levels, check_pair
from d2kd.utils.errors import ConfigError, PairMismatchError
from tests.common.helpers import distill_cfg, plain_cfg, write_teacher

FEATURES = frozenset({"features"})
HEADS = frozenset({"features", "logits", "deltas"})
DENSE = frozenset({"features", "dense_logits"})
BINS = frozenset({"box_bins", "deltas"})
ANCHORS = "MODEL.ANCHOR_GENERATOR."


def _family(name):
    return ["MODEL.META_ARCHITECTURE", name]


@pytest.mark.parametrize(
    "family, requires, key, value",
    [
        ("GeneralizedRCNN", HEADS, "MODEL.ROI_HEADS.NUM_CLASSES", 7),
        ("GeneralizedRCNN", DENSE, "MODEL.RPN.IN_FEATURES", ["p2", "p3"]),
        ("GeneralizedRCNN", DENSE, ANCHORS + "ASPECT_RATIOS", [[1.0]]),
        ("RetinaNet", DENSE, "MODEL.RETINANET.NUM_CLASSES", 7),
        ("RetinaNet", HEADS, "MODEL.RETINANET.IN_FEATURES", ["p3"]),
        ("RetinaNet", HEADS, ANCHORS + "SIZES", [[9]]),
        ("RetinaNet", HEADS, "MODEL.RETINANET.BBOX_REG_WEIGHTS", (2.0, 2.0, 1.0, 1.0)),
        ("FCOS", DENSE, "MODEL.FCOS.NUM_CLASSES", 7),
        ("FCOS", HEADS, "MODEL.FCOS.IN_FEATURES", ["p3"]),
        ("GFL", DENSE, "MODEL.GFL.NUM_CLASSES", 7),
        ("GFL", BINS, "MODEL.GFL.REG_MAX", 8),
        ("GFL", frozenset({"dense_box_bins"}), "MODEL.GFL.REG_MAX", 8),
    ],
)
def test_a_difference_that_a_loss_reads_names_its_key(family, requires, key, value):
    student = plain_cfg(*_family(family))
    check_pair(student, plain_cfg(*_family(family)), requires)
    teacher = plain_cfg(*_family(family), key, value)
    with pytest.raises(PairMismatchError, match=f"^{key} is .* for the student.*set {key} to"):
        check_pair(student, teacher, requires)


@pytest.mark.parametrize(
    "requires, opts",
    [
        (FEATURES, ["MODEL.ROI_HEADS.NUM_CLASSES", 7]),
        (FEATURES, _family("RetinaNet")),
        (FEATURES, ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"]),
        (DENSE, ["MODEL.ROI_HEADS.NUM_CLASSES", 7]),
        (HEADS, ["MODEL.RPN.IN_FEATURES", ["p2", "p3"]]),
        # The teacher's boxes are encoded as the student's.
        (HEADS, ["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0)]),
        (HEADS, _family("PanopticFPN")),
        (DENSE, _family("ProposalNetwork")),
    ],
)
def test_a_difference_that_nobody_reads_is_allowed(requires, opts):
    check_pair(plain_cfg(), plain_cfg(*opts), requires)


def test_heads_that_cannot_be_read():
    with pytest.raises(ValueError, match="set DISTILL.REG.DISTANCE to 'box_loss'"):
        check_pair(plain_cfg(), plain_cfg(), BINS)
    with pytest.raises(ValueError, match="set DISTILL.REG.WHERE to 'positives'"):
        check_pair(plain_cfg(), plain_cfg(), frozenset({"dense_deltas"}))
    with pytest.raises(ConfigError, match="softmax: set DISTILL.CLS.DISTANCE to 'cross_entropy'"):
        quality = plain_cfg("DISTILL.CLS.DISTANCE", "quality_focal")
        check_pair(quality, plain_cfg(), DENSE)


@pytest.mark.parametrize(
    "student, teacher", [("GeneralizedRCNN", "RetinaNet"), ("GFL", "FCOS"), ("FCOS", "PanopticFPN")]
)
def test_heads_of_two_kinds_are_not_compared(student, teacher):
    cfg, theirs = plain_cfg(*_family(student)), plain_cfg(*_family(teacher))
    refusal = f"META_ARCHITECTURE is {student} .* and {teacher} .*DISTILL.LOSSES to .'feature'."
    with pytest.raises(PairMismatchError, match=refusal):
        check_pair(cfg, theirs, HEADS)
    check_pair(cfg, theirs, FEATURES)


def test_union_needs_two_detectors_with_proposals():
    union = ["DISTILL.PROPOSALS", "union"]
    check_pair(plain_cfg(*union), plain_cfg(), FEATURES)
    with pytest.raises(ValueError, match="RetinaNet has no proposals: set DISTILL.PROPOSALS"):
        check_pair(plain_cfg(*union, *_family("RetinaNet")), plain_cfg(), FEATURES)
    with pytest.raises(ValueError, match="MODEL.META_ARCHITECTURE"):
        check_pair(plain_cfg(*union), plain_cfg(*_family("RetinaNet")), FEATURES)


def test_a_detector_that_nothing_registers_is_refused_by_name():
    with pytest.raises(ConfigError, match="'Mine' is not known: import the module"):
        check_pair(plain_cfg(*_family("Mine")), plain_cfg(*_family("Mine")), HEADS)


@pytest.mark.parametrize(
    "requires, advice",
    [
        (HEADS, "no deltas: set DISTILL.LOSSES to a list without 'reg'; Mine has no logits: set"),
        (DENSE, "no dense_logits: set DISTILL.FEATURE.MASK"),
        (frozenset({"logits"}), "no logits: set DISTILL.LOSSES to a list without 'cls'"),
    ],
)
def test_a_row_of_features_only_refuses_losses_on_heads(monkeypatch, requires, advice):
    monkeypatch.setitem(DETECTORS, "Mine", Detector(name="Mine", forward_pair="any"))
    cfg = plain_cfg(*_family("Mine"))
    check_pair(cfg, plain_cfg(), FEATURES)
    with pytest.raises(ConfigError, match=f"Mine has {advice}"):
        check_pair(cfg, plain_cfg(), requires)


def _detector(divisor=32, **strides):
    shapes = {name: ShapeSpec(channels=8, stride=stride) for name, stride in strides.items()}
    backbone = SimpleNamespace(output_shape=lambda: shapes, size_divisibility=divisor)
    return SimpleNamespace(backbone=backbone)


@pytest.mark.parametrize(
    "teacher, message",
    [
        (
            _detector(p3=8),
            r"the teacher has no feature level 'p4': set DISTILL.FEATURE.LEVELS to .*3'\]",
        ),
        (_detector(p3=8, p4=32), r"level 'p4' in DISTILL.FEATURE.LEVELS has the strides.*\['p3'\]"),
        (
            _detector(res4=16),
            "no feature level 'p3': set DISTILL.LOSSES to a list without 'feature'",
        ),
        (_detector(p3=8, p4=16, divisor=128), "pad images .*DISTILL.TEACHER.CONFIG_FILE"),
    ],
)
def test_levels_that_do_not_fit(teacher, message):
    student = _detector(p3=8, p4=16)
    check_levels(["p3", "p4"], student, student)
    with pytest.raises(ValueError, match=message):
        check_levels(["p3", "p4"], student, teacher)
    with pytest.raises(ValueError, match="the student has no feature level 'p9'"):
        check_levels(["p9"], student, student)


def test_a_mask_of_dense_logits_needs_the_dense_head_on_each_level():
    check_dense_levels(plain_cfg("MODEL.RPN.IN_FEATURES", ["p2", "p3"]), ["p3"])
    with pytest.raises(ValueError, match=r"\['p4'\]: set DISTILL.FEATURE.LEVELS .*RPN.IN_FEATURES"):
        check_dense_levels(plain_cfg("MODEL.RPN.IN_FEATURES", ["p2", "p3"]), ["p3", "p4"])


@pytest.mark.parametrize(
    "teacher_opts, opts, message",
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", 7], [], "MODEL.ROI_HEADS.NUM_CLASSES is 4"),
        ([], ["DISTILL.FEATURE.LEVELS", ["p2", "p9"]], "no feature level 'p9'"),
        ([], ["DISTILL.LOSSES", []], r"DISTILL.LOSSES is \[\]: set it to one or more of"),
        ([], ["DISTILL.LOSSES", ["box"]], "DISTILL.LOSSES is .*set it to one or more of"),
        ([], ["DISTILL.FEATURE.ADAPTER", "none"], "set DISTILL.FEATURE.ADAPTER"),
        ([], ["DISTILL.PROPOSALS", "teacher"], "DISTILL.PROPOSALS is 'teacher'"),
        ([], ["DISTILL.REG.DISTANCE", "distribution_kl"], "DISTILL.REG.DISTANCE"),
        ([], ["MODEL.META_ARCHITECTURE", "Panoptic"], "'Panoptic' is not known: .*'PanopticFPN'"),
        (
            ["MODEL.RPN.IN_FEATURES", ["p2"], "MODEL.ANCHOR_GENERATOR.SIZES", [[8]]],
            ["MODEL.RPN.IN_FEATURES", ["p2"], "MODEL.ANCHOR_GENERATOR.SIZES", [[8]]]
            + ["DISTILL.FEATURE.MASK", "richness"],
            "set DISTILL.FEATURE.LEVELS to some of MODEL.RPN.IN_FEATURES",
        ),
    ],
)
def test_a_distiller_of_them_is_not_built(tmp_path, teacher_opts, opts, message):
    files = write_teacher(tmp_path, *teacher_opts)
    with pytest.raises(ValueError, match=message):
        Distiller(distill_cfg(files, *opts))
