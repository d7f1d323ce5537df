# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A value that Detectron2 would stumble over, or train wrongly with, is named before anything."""

import importlib.util

import pytest

from d2kd.config.unused_keys import describe_unused_keys
from d2kd.config.validation import check_config
from d2kd.utils.errors import ConfigError
from tests.common.helpers import plain_cfg

CROP = ["INPUT.CROP.ENABLED", True]


@pytest.mark.parametrize(
    "opts, words",
    [
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorSampler"], "mean 'RepeatFactorTrainingSampler'"),
        (["INPUT.RANDOM_FLIP", "horizontally"], "mean 'horizontal'"),
        (["INPUT.MASK_FORMAT", "bitmap"], "mean 'bitmask'"),
        (["INPUT.FORMAT", "bgr"], "one of ['BGR',"),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "ranges"], "mean 'range'"),
        (["INPUT.MIN_SIZE_TRAIN", (640,), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "the least"),
        (["INPUT.MIN_SIZE_TRAIN", ()], "lengths in pixels"),
        (["INPUT.MIN_SIZE_TEST", -1], "0 for images as they are"),
        (["INPUT.CROP.TYPE", "relatve", *CROP], "mean 'relative'"),
        (["INPUT.CROP.SIZE", [384, 600], *CROP], "two fractions above 0, at most 1"),
        (["INPUT.CROP.SIZE", [0.0, 0.5], *CROP], "two fractions above 0, at most 1"),
        (["INPUT.CROP.SIZE", [0.9, 0.9], "INPUT.CROP.TYPE", "absolute", *CROP], "lengths in"),
        (["SOLVER.STEPS", (2, 1)], "rising iterations"),
        (["SOLVER.STEPS", (2, 2)], "rising iterations"),
        (
            ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norms", "SOLVER.CLIP_GRADIENTS.ENABLED", True],
            "mean 'norm'",
        ),
        (["SOLVER.REFERENCE_WORLD_SIZE", 7, "SOLVER.IMS_PER_BATCH", 16], "IMS_PER_BATCH, 16"),
        (["MODEL.PIXEL_STD", [1.0, 0.0, 1.0]], "numbers above 0"),
        (["MODEL.PIXEL_STD", [1.0]], "as many as MODEL.PIXEL_MEAN has (3)"),
        (["MODEL.PIXEL_MEAN", ["a", 0.0, 0.0]], "a number for each channel"),
        (["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 5.0], "a number from 0 to 1"),
        (["MODEL.RETINANET.NMS_THRESH_TEST", -0.5], "a number from 0 to 1"),
        (["TEST.DETECTIONS_PER_IMAGE", 0], "-1 is no limit"),
    ],
)
def test_a_value_that_cannot_be_is_named(opts, words):
    with pytest.raises(ConfigError) as caught:
        check_config(plain_cfg(*opts))
    line = str(caught.value).splitlines()[1]
    assert line.startswith(f"  {opts[0]} is ") and words in line


@pytest.mark.parametrize(
    "opts",
    [
        ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
        ["INPUT.CROP.SIZE", [384, 600], "INPUT.CROP.TYPE", "absolute_range", *CROP],
        ["INPUT.MIN_SIZE_TRAIN", (640, 800), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"],
        ["INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.MIN_SIZE_TEST", 0],
        ["SOLVER.STEPS", ()],
        ["TEST.DETECTIONS_PER_IMAGE", -1],
    ],
)
def test_values_that_detectron2_reads_pass(opts):
    check_config(plain_cfg(*opts))


@pytest.mark.parametrize(
    "key, value, switch",
    [
        ("INPUT.CROP.SIZE", [0.5, 0.5], "INPUT.CROP.ENABLED"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.1, "SOLVER.CLIP_GRADIENTS.ENABLED"),
        ("TEST.AUG.FLIP", False, "TEST.AUG.ENABLED"),
        ("TEST.PRECISE_BN.NUM_ITER", 5, "TEST.PRECISE_BN.ENABLED"),
        ("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", 5, "MODEL.LOAD_PROPOSALS"),
    ],
)
def test_a_key_whose_switch_is_off_has_no_effect(key, value, switch):
    assert f"{key}: {switch} is False" in describe_unused_keys(plain_cfg(key, value))
    assert not describe_unused_keys(plain_cfg())
    assert not describe_unused_keys(plain_cfg(key, value, switch, True))


def test_cropping_polygons_needs_shapely(monkeypatch):
    opts = ["MODEL.MASK_ON", True, *CROP]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="INPUT.CROP.ENABLED is True: .* shapely, .*'bitmask'"):
        check_config(plain_cfg(*opts))
    check_config(plain_cfg(*opts, "INPUT.MASK_FORMAT", "bitmask"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    check_config(plain_cfg(*opts))
