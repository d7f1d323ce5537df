# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Keys that nothing would read are refused, or named in one warning."""

import re

import pytest

from d2kd.config.load import load_config
from d2kd.config.unused_keys import describe_unused_keys, warn_of_unused_keys
from d2kd.config.validation import check_config
from d2kd.utils.errors import ConfigError
from tests.common import ROOT
from tests.common.helpers import distill_cfg, plain_cfg
from tests.common.tiny_dense import dense_cfg

AUGMENT = ["TEST.AUG.ENABLED", True]
LOAD = ["MODEL.LOAD_PROPOSALS", True]
FILES = ["DATASETS.PROPOSAL_FILES_TRAIN", ("a.pkl",)]
PRECOMPUTED = ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"]
REPEAT = ["DATALOADER.REPEAT_THRESHOLD", 0.1]


@pytest.mark.parametrize(
    "opts, text",
    [
        ([*AUGMENT, "MODEL.META_ARCHITECTURE", "RetinaNet"], "TEST.AUG.ENABLED .*not of RetinaNet"),
        ([*AUGMENT, "MODEL.META_ARCHITECTURE", "GFL"], "TEST.AUG.ENABLED .*not of GFL"),
        ([*AUGMENT, "MODEL.META_ARCHITECTURE", "PanopticFPN"], "TEST.AUG.ENABLED .*PanopticFPN"),
        ([*AUGMENT, "MODEL.KEYPOINT_ON", True], "TEST.AUG.ENABLED .*MODEL.KEYPOINT_ON"),
        ([*AUGMENT, *LOAD, *PRECOMPUTED], "TEST.AUG.ENABLED .*MODEL.LOAD_PROPOSALS"),
        (FILES, "DATASETS.PROPOSAL_FILES_TRAIN .*set MODEL.LOAD_PROPOSALS to True"),
        (LOAD, "set the latter to 'PrecomputedProposals'"),
        (REPEAT, "set DATALOADER.SAMPLER_TRAIN to 'RepeatFactorTrainingSampler'"),
        (["GLOBAL.HACK", 2.0], "GLOBAL.HACK is 2.0"),
    ],
)
def test_keys_that_would_silently_do_something_else_are_refused(opts, text):
    with pytest.raises(ConfigError, match=text):
        check_config(plain_cfg(*opts))


def test_proposals_of_a_file_are_read_under_a_teacher_as_without():
    check_config(distill_cfg(("a", "b"), *LOAD, *PRECOMPUTED))
    with pytest.raises(ConfigError, match="set the latter to 'PrecomputedProposals'"):
        check_config(distill_cfg(("a", "b"), *LOAD))


@pytest.mark.parametrize(
    "opts",
    [
        AUGMENT,
        [*LOAD, *PRECOMPUTED, *FILES],
        [*REPEAT, "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
    ],
)
def test_the_advice_is_accepted(opts):
    check_config(plain_cfg(*opts))
    assert describe_unused_keys(plain_cfg(*opts)) == []


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("RetinaNet", "MODEL.RPN.NMS_THRESH", 0.6),
        ("FCOS", "MODEL.RETINANET.NUM_CLASSES", 7),
        ("GFL", "MODEL.ROI_HEADS.NUM_CLASSES", 7),
        ("GFL", "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", 0.6),
    ],
)
def test_keys_of_another_detector_are_named(name, key, value, caplog):
    cfg = dense_cfg(name)
    assert describe_unused_keys(cfg) == []
    cfg.merge_from_list([key, value])
    warn_of_unused_keys(cfg)
    (record,) = caplog.records
    assert f"{key}: MODEL.META_ARCHITECTURE {name} does not read them" in record.getMessage()


@pytest.mark.parametrize(
    "opts, text",
    [
        (["MODEL.MASK_ON", True], "MODEL.MASK_ON is True, but .*FCOS has no mask head"),
        (["MODEL.KEYPOINT_ON", True], "MODEL.KEYPOINT_ON .*no keypoint head"),
        (["VIS_PERIOD", 5], "VIS_PERIOD is 5, but FCOS alone draws"),
        (["SOLVER.OPTIMIZER", "ADAMW", "SOLVER.NESTEROV", True], "SOLVER.NESTEROV is True"),
        (["TEST.EVAL_PERIOD", 5], "TEST.EVAL_PERIOD is 5, but DATASETS.TEST"),
    ],
)
def test_switches_without_effect_are_named(opts, text):
    cfg = dense_cfg("FCOS")
    cfg.merge_from_list(opts)
    (line,) = describe_unused_keys(cfg)
    assert re.search(text, line)


def test_a_detector_of_ones_own_may_read_anything():
    cfg = dense_cfg("FCOS")
    cfg.MODEL.RPN.NMS_THRESH, cfg.MODEL.META_ARCHITECTURE = 0.5, "Mine"
    assert describe_unused_keys(cfg) == []


def test_no_config_of_the_project_sets_a_key_in_vain():
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        assert describe_unused_keys(load_config(str(path))) == [], path
