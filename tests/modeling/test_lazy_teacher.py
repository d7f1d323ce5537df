# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A teacher of a LazyConfig file is the teacher of the same yaml, to the bit and to the checks."""

import builtins
import logging
import os

import pytest
import torch
from detectron2.config import get_cfg

from d2kd.config import get_value
from d2kd.config.detectors import get_detector
from d2kd.config.spelling import same_value
from d2kd.modeling import Distiller, lazy_teacher
from d2kd.modeling.build import build_teacher, read_teacher_config
from d2kd.modeling.teacher_cache.build import teacher_signature
from d2kd.utils.errors import ConfigError, PairMismatchError, WeightsError
from tests.common.detectors import DETECTORS, WIDE, detector_cfg, flat
from tests.common.helpers import build_distiller, distill_cfg, make_batch, run, write_teacher
from tests.common.lazy_files import write_lazy_teacher, write_toy

TEACHER = "DISTILL.TEACHER.CONFIG_FILE"


def _keys(name):
    wide = {"MODEL.RESNETS.RES2_OUT_CHANNELS": 32, **WIDE}
    return flat({"MODEL.META_ARCHITECTURE": name, **DETECTORS[name], **wide})


def _zoo(name, **keys):
    cfg = distill_cfg(("", ""), TEACHER, name, *flat(keys))
    return read_teacher_config(cfg)


@pytest.mark.parametrize("name", DETECTORS)
def test_it_gives_the_losses_of_the_same_yaml(tmp_path, name):
    # The others keep no input_format; their files tell it by the mapper.
    order = "RGB" if name in ("GeneralizedRCNN", "RetinaNet") else "BGR"
    opts = [*_keys(name), "INPUT.FORMAT", order]
    files = write_teacher(tmp_path / "yaml", *opts)
    path = write_lazy_teacher(tmp_path / "lazy", files[1], *opts)
    losses = []
    for config in (files[0], path):
        # Its weights are train.init_checkpoint's.
        weights = "" if config is path else files[1]
        cfg = detector_cfg({name: (config, weights)}, name, {})
        losses.append(run(build_distiller(cfg), make_batch()))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])


@pytest.mark.parametrize("name", DETECTORS)
def test_its_keys_are_those_of_the_same_yaml(tmp_path, name):
    files = write_teacher(tmp_path / "yaml", *_keys(name), "INPUT.FORMAT", "RGB")
    path = write_lazy_teacher(tmp_path / "lazy", files[1], *_keys(name), "INPUT.FORMAT", "RGB")
    yaml, lazy = (read_teacher_config(distill_cfg((x, files[1]))) for x in (files[0], path))
    row = get_detector(yaml)
    keys = ["MODEL.META_ARCHITECTURE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"]
    keys += [row.num_classes_key, row.dense_levels_key, *row.cross_head_keys]
    keys += row.box_keys + row.anchor_keys
    if name in ("GeneralizedRCNN", "RetinaNet"):  # the others keep no input_format
        keys.append("INPUT.FORMAT")
    wrong = [k for k in keys if not same_value(k, get_value(yaml, k), get_value(lazy, k))]
    assert not wrong and lazy.MODEL.WEIGHTS == str(files[1])


def test_the_zoo_s_python_config_agrees_with_its_yaml():
    yaml, lazy = (_zoo(f"COCO-Detection/retinanet_R_50_FPN_1x.{x}") for x in ("yaml", "py"))
    row = get_detector(yaml)
    for key in (*row.box_keys, *row.anchor_keys, row.num_classes_key, *row.cross_head_keys):
        assert same_value(key, get_value(yaml, key), get_value(lazy, key)), key
    assert lazy.INPUT.FORMAT == yaml.INPUT.FORMAT and lazy.DATASETS.TRAIN == yaml.DATASETS.TRAIN
    assert lazy.MODEL.PIXEL_MEAN == list(yaml.MODEL.PIXEL_MEAN)
    assert lazy.INPUT.MIN_SIZE_TEST == 800
    # Not the checkpoint that its training starts from, which is of a backbone alone.
    assert "retinanet_R_50_FPN_1x/190397773" in lazy.MODEL.WEIGHTS


def test_its_weights_are_the_key_s_before_the_file_s(tmp_path):
    path = write_toy(tmp_path)
    for given, expected in (("", str(tmp_path / "teacher.pth")), ("own.pth", "own.pth")):
        assert read_teacher_config(distill_cfg((path, given))).MODEL.WEIGHTS == expected
    path.write_text(path.read_text().rsplit("train =", 1)[0])
    with pytest.raises(WeightsError, match="set DISTILL.TEACHER.WEIGHTS to the path"):
        read_teacher_config(distill_cfg((path, "")))


def test_running_its_code_is_said_once_and_draws_nothing(tmp_path, caplog):
    cfg = distill_cfg((write_toy(tmp_path), ""))
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        read_teacher_config(cfg)
        assert torch.equal(torch.get_rng_state(), before)
        build_teacher(read_teacher_config(cfg), "BGR")
    assert caplog.text.count("is Python code and runs as such") == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 / 0", "fails: ZeroDivisionError: division by zero"),
        ("model = (", "fails: SyntaxError: Config file .* has syntax error"),
        ("from detectron2.of_another_release import x", "ModuleNotFoundError: No module named"),
        ("train = dict()", "has no 'model': set it to a file that defines one"),
        ("from detectron2.config import LazyCall as L\nmodel = L(int)(a=1)", "cannot be built"),
    ],
)
def test_a_file_that_fails_is_named(tmp_path, text, message):
    path = tmp_path / "teacher.py"
    path.write_text(text)
    plain_import = builtins.__import__
    with pytest.raises(ConfigError, match=message) as caught:
        read_teacher_config(distill_cfg((path, "")))
    assert str(path) in str(caught.value) and TEACHER in str(caught.value)
    assert builtins.__import__ is plain_import
    with pytest.raises(ConfigError, match="neither a file .* nor the name of a config"):
        _zoo("new_baselines/nowhere.py")


def test_it_is_checked_like_others(tmp_path):
    opts = [*_keys("RetinaNet"), "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [48], [80]]]
    files = write_teacher(tmp_path / "yaml", *opts)
    path = write_lazy_teacher(tmp_path, files[1], *opts)
    cfg = detector_cfg({"RetinaNet": (path, "")}, "RetinaNet", {})
    with pytest.raises(
        PairMismatchError, match="MODEL.ANCHOR_GENERATOR.SIZES is .*, .80.0.. for the teacher"
    ):
        Distiller(cfg)


def test_a_cache_knows_it_by_its_text_and_not_by_its_place(tmp_path):
    paths = [write_toy(tmp_path / "a"), write_toy(tmp_path / "b")]
    paths.append(write_toy(tmp_path / "c", multiple=32))
    found = []
    for path in paths:
        cfg = distill_cfg((path, ""))
        found.append(teacher_signature(cfg, read_teacher_config(cfg), "sha")["model"])
    assert found[0] == found[1] != found[2]


def test_a_changed_file_is_read_again(tmp_path):
    path = write_toy(tmp_path)
    lazy_teacher._read.cache_clear()
    assert read_teacher_config(distill_cfg((path, ""))).MODEL.RETINANET.NUM_CLASSES == 4
    write_toy(tmp_path, classes=5)
    os.utime(path, (1, 1))
    assert read_teacher_config(distill_cfg((path, ""))).MODEL.RETINANET.NUM_CLASSES == 5
    assert get_cfg().MODEL.RETINANET.NUM_CLASSES == 80


def test_the_order_of_channels_is_the_mapper_s_where_the_model_has_none(tmp_path, caplog):
    path = write_lazy_teacher(tmp_path, "a.pth", *_keys("FCOS"))
    with caplog.at_level(logging.WARNING):
        assert read_teacher_config(distill_cfg((path, ""))).INPUT.FORMAT == "BGR"
    assert "tells no order of channels" in caplog.text and "its images are BGR" in caplog.text
    mapper = "{'image_format': 'RGB', 'augmentations': [{'short_edge_length': 96, 'max_size': 99}]}"
    path.write_text(path.read_text() + f"dataloader = dict(test=dict(mapper={mapper}))\n")
    os.utime(path, (1, 1))
    found = read_teacher_config(distill_cfg((path, ""))).INPUT
    assert (found.FORMAT, found.MIN_SIZE_TEST, found.MAX_SIZE_TEST) == ("RGB", 96, 99)
