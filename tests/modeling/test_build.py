# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Building both detectors: the student is stock, the teacher is complete or the run stops."""

import hashlib
import logging

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import nn

from d2kd.checkpoint.weights import resolve_weights
from d2kd.modeling.build import build_student, build_teacher, read_teacher_config
from d2kd.utils.errors import ConfigError, PairMismatchError, WeightsError
from tests.common.helpers import distill_cfg, plain_cfg, write_teacher


def _build(files, *opts):
    cfg = distill_cfg(files, *opts)
    return build_teacher(read_teacher_config(cfg), cfg.INPUT.FORMAT)


def _rewrite(files, folder, change):
    """The teacher's files with ``change`` applied to the state_dict."""
    state = torch.load(files[1])["model"]
    change(state)
    torch.save({"model": state}, folder / "changed.pth")
    return files[0], folder / "changed.pth"


def test_student_is_the_stock_model_with_the_same_initial_weights():
    models = []
    for build in (build_model, build_student):
        torch.manual_seed(3)
        models.append(build(plain_cfg()).state_dict())
    assert list(models[0]) == list(models[1])
    assert all(torch.equal(a, b) for a, b in zip(*(m.values() for m in models)))


def test_a_detector_without_a_backbone_is_refused(teacher_files, tmp_path, monkeypatch):
    class Whole(nn.Module):
        def __init__(self, cfg):
            super().__init__()

    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", dict(META_ARCH_REGISTRY))
    META_ARCH_REGISTRY.register(Whole)
    monkeypatch.setattr("d2kd.modeling.parts.build_model", Whole)
    opts = ["MODEL.META_ARCHITECTURE", "Whole"]
    with pytest.raises(PairMismatchError, match="the student's Whole has no Backbone as its"):
        build_student(plain_cfg(*opts))
    (tmp_path / "whole.yaml").write_text(plain_cfg(*opts).dump())
    with pytest.raises(PairMismatchError, match="the teacher's Whole has no Backbone as its"):
        _build((tmp_path / "whole.yaml", teacher_files[1]))


def test_complete_teacher_and_its_printed_report(teacher_files, caplog):
    with caplog.at_level(logging.INFO, logger="d2kd"):
        teacher = _build(teacher_files)
    expected = torch.load(teacher_files[1])["model"]
    state = teacher.model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in expected.items())
    counts = f"{len(state)} matched, 0 missing, 0 wrong shape, 0 unexpected"
    assert f"teacher weights {teacher_files[1]}: {counts}" in caplog.text
    digest = hashlib.sha256(teacher_files[1].read_bytes()).hexdigest()
    assert teacher.fingerprint == {"weights": str(teacher_files[1]), "sha256": digest}


def test_half_precision_weights_are_complete(teacher_files, tmp_path):
    def halve(state):
        state.update({k: v.half() for k, v in state.items() if v.is_floating_point()})

    teacher = _build(_rewrite(teacher_files, tmp_path, halve))
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}


def test_unexpected_weights_are_reported_and_harmless(teacher_files, tmp_path, caplog):
    files = _rewrite(teacher_files, tmp_path, lambda s: s.update(other=torch.zeros(1)))
    with caplog.at_level(logging.INFO, logger="d2kd"):
        _build(files)
    assert "0 missing, 0 wrong shape, 1 unexpected" in caplog.text


@pytest.mark.parametrize(
    "key", ["roi_heads.box_predictor.cls_score.weight", "backbone.bottom_up.stem.conv1.norm.bias"]
)
def test_a_missing_weight_stops_and_is_named(teacher_files, tmp_path, key):
    files = _rewrite(teacher_files, tmp_path, lambda s: s.pop(key))
    with pytest.raises(WeightsError, match="1 missing(.|\n)*missing: " + key):
        _build(files)


def test_weights_of_another_architecture_stop(teacher_files, tmp_path):
    other = write_teacher(tmp_path, "MODEL.FPN.OUT_CHANNELS", 20)
    with pytest.raises(WeightsError, match="wrong shape: (.|\n)*DISTILL.TEACHER.CONFIG_FILE"):
        _build((teacher_files[0], other[1]))


def test_backbone_weights_alone_stop(teacher_files, tmp_path):
    def keep_backbone(state):
        for key in [k for k in state if not k.startswith("backbone.bottom_up")]:
            del state[key]

    with pytest.raises(WeightsError, match="missing: "):
        _build(_rewrite(teacher_files, tmp_path, keep_backbone))


def test_truncated_and_foreign_files_stop(teacher_files, tmp_path):
    whole = teacher_files[1].read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(
            WeightsError, match="DISTILL.TEACHER.WEIGHTS .*broken.pth cannot be read"
        ):
            _build((teacher_files[0], tmp_path / "broken.pth"))


@pytest.mark.parametrize("name", ["absent.pth", "."])
def test_absent_weights_stop(teacher_files, tmp_path, name):
    with pytest.raises(WeightsError, match="DISTILL.TEACHER.WEIGHTS .* is not there"):
        _build((teacher_files[0], tmp_path / name))


def test_an_address_that_cannot_be_fetched_stops():
    with pytest.raises(WeightsError, match="MODEL.WEIGHTS detectron3://x cannot|not there"):
        resolve_weights("detectron3://x", "MODEL.WEIGHTS")


def test_options_behind_the_path_of_weights(teacher_files):
    resolve_weights(f"{teacher_files[1]}?matching_heuristics=True", "MODEL.WEIGHTS")


def test_config_files_that_are_not_there(teacher_files):
    for name, error, message in [
        ("", ConfigError, "DISTILL.TEACHER.CONFIG_FILE is empty"),
        (
            "nowhere.yaml",
            ConfigError,
            "DISTILL.TEACHER.CONFIG_FILE 'nowhere.yaml' is neither",
        ),
    ]:
        with pytest.raises(error, match=message):
            read_teacher_config(distill_cfg((name, "")))
    with pytest.raises(WeightsError, match="no model-zoo weights.*DISTILL.TEACHER.WEIGHTS"):
        read_teacher_config(distill_cfg((teacher_files[0], "")))


def test_a_zoo_name_brings_its_weights():
    cfg = read_teacher_config(distill_cfg(("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml", "")))
    assert cfg.MODEL.RESNETS.DEPTH == 101
    assert cfg.MODEL.WEIGHTS.endswith("faster_rcnn_R_101_FPN_3x/137851257/model_final_f6e8b1.pkl")
    assert cfg.MODEL.DEVICE == "cpu"


def test_channel_orders_that_cannot_be_swapped_stop(tmp_path):
    files = write_teacher(tmp_path, "INPUT.FORMAT", "L")
    with pytest.raises(PairMismatchError, match="set INPUT.FORMAT to 'L'"):
        _build(files)
