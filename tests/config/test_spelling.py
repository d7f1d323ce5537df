# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Values that Detectron2 reads alike are equal, others are not."""

import pytest

from d2kd.checkpoint.fingerprint import ConfigFingerprint, describe_changes
from d2kd.config.spelling import same_value
from d2kd.modeling.compatibility import check_pair
from tests.common.helpers import plain_cfg

SIZES, RATIOS = "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"
OTHER = "MODEL.RPN.IOU_THRESHOLDS"


@pytest.mark.parametrize(
    "key, one, other",
    [
        (OTHER, (0.3, 0.7), [0.3, 0.7]),
        (OTHER, [[1, 2], 3], ((1.0, 2.0), 3)),
        ("SOLVER.BASE_LR", 1, 1.0),
        (RATIOS, [0.5, 1, 2], [[0.5, 1.0, 2.0]]),
        (RATIOS, [[0.5, 1.0, 2.0]], ((0.5, 1.0, 2.0),) * 5),
        (SIZES, [32, 64], [[32, 64]] * 3),
        ("INPUT.MIN_SIZE_TRAIN", 800, (800,)),
    ],
)
def test_spellings_of_one_value(key, one, other):
    assert same_value(key, one, other) and same_value(key, other, one)


@pytest.mark.parametrize(
    "key, one, other",
    [
        (OTHER, [0.3, 0.7], [0.7, 0.3]),
        (OTHER, [0.3], 0.3),
        (OTHER, [[1, 2]], [1, 2]),
        (RATIOS, [0.5, 1, 2], [[0.5], [1], [2]]),
        (SIZES, [[32], [64]], [[32, 64]]),
        (SIZES, [[32], [64]], [[32], [32]]),
        (SIZES, None, [[32]]),
        ("MODEL.MASK_ON", True, 1),
    ],
)
def test_different_values(key, one, other):
    assert not same_value(key, one, other) and not same_value(key, other, one)


def test_a_pair_and_a_resumed_run_are_compared_so():
    ours, theirs = plain_cfg(RATIOS, [0.5, 1, 2]), plain_cfg(RATIOS, [[0.5, 1.0, 2.0]] * 5)
    check_pair(ours, theirs, frozenset({"features", "dense_logits"}))
    states = [ConfigFingerprint(cfg).state_dict() for cfg in (ours, theirs)]
    assert describe_changes(*states) == []
    theirs.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0]]
    with pytest.raises(ValueError, match=RATIOS):
        check_pair(ours, theirs, frozenset({"features", "dense_logits"}))
