# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Weights are found in the wrappings of other programs, or refused with what is there."""

import pytest
import torch
from detectron2.modeling import build_model

from d2kd.checkpoint.weights import load_weights, load_weights_strict
from d2kd.utils.errors import WeightsError
from tests.common.helpers import plain_cfg


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(3)
    return build_model(plain_cfg())


def _prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


WRAPPINGS = {
    "model": lambda s: {"model": s, "iteration": 3},
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {}}}},
    "nested": lambda s: {"checkpoint": {"state_dict": s}, "meta": {"a": 1}},
    "a name for model": lambda s: {"model": "faster_rcnn", "state_dict": s},
    "module.": lambda s: {"model": _prefixed(s, "module.")},
    "model.": lambda s: {"state_dict": _prefixed(s, "model.")},
    "student.": lambda s: {"model": {**_prefixed(s, "student."), "adapter.weight": torch.zeros(3)}},
    "two prefixes": lambda s: _prefixed(s, "module.detector."),
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_unambiguous_wrappings_are_loaded(detector, tmp_path, wrap):
    path = str(tmp_path / "a.pth")
    torch.save(wrap(dict(detector.state_dict())), path)
    torch.manual_seed(4)
    other = build_model(plain_cfg())
    load_weights_strict(other, path, path, "student")
    for name, value in detector.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(
    "wrap, words",
    [
        (lambda s: {"state_dict": s, "ema": s}, "2 state_dicts .state_dict, ema."),
        (lambda s: {**_prefixed(s, "student."), **_prefixed(s, "teacher.")}, "more than once"),
        (lambda s: {"meta": {"a": 1}, "epoch": 3}, "no dict of tensors; it has meta, epoch"),
        (lambda s: {"model": {**s, "step": 3}}, "no dict of tensors; it has "),
        (lambda s: torch.zeros(3), "cannot be loaded|holds a Tensor"),
        (lambda s: None, "cannot be loaded|holds a NoneType"),
    ],
)
def test_others_are_refused_with_what_is_there(detector, tmp_path, wrap, words):
    path = str(tmp_path / "a.pth")
    torch.save(wrap(dict(detector.state_dict())), path)
    for whose, key in (("student", "MODEL.WEIGHTS"), ("teacher", "DISTILL.TEACHER.WEIGHTS")):
        with pytest.raises(WeightsError, match=f"{key} .*a.pth.*({words})"):
            load_weights_strict(build_model(plain_cfg()), path, path, whose)


def test_the_backbone_alone_is_loaded_under_its_own_names(detector, tmp_path):
    state = {n: v for n, v in detector.state_dict().items() if n.startswith("backbone.")}
    torch.save(state, tmp_path / "a.pth")
    loaded = load_weights(build_model(plain_cfg()), str(tmp_path / "a.pth"))
    assert set(state) <= set(loaded.matched)
    assert not [name for name in loaded.matched if name.startswith("roi_heads")]
