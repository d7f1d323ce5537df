# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""mmdetection's weights in our detectors give what they give in mmdetection's structure."""

import importlib.util

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from d2kd.checkpoint.weights import load_weights_strict
from d2kd.config.defaults import add_d2kd_config
from d2kd.modeling import FrozenTeacher
from d2kd.modeling.meta_arch.gfl.losses import expected_distance
from d2kd.modeling.paired_forward.dense import LevelPositives, teacher_outputs
from d2kd.modeling.paired_forward.registry import RequiredOutputs
from d2kd.utils.errors import ConfigError, WeightsError
from tests.common import ROOT
from tests.common.mmdet_modules import STRIDES, MMDetector, decode
from tests.common.tiny_dense import make_batch

TOOL = ROOT / "tools" / "convert_mmdet_checkpoint.py"
TEACHERS = ROOT / "configs" / "coco" / "teacher"
CONFIGS = {
    "gfl": (TEACHERS / "gfl_R_101_mmdet_FPN_2x.yaml", {}),
    "fcos": (TEACHERS / "fcos_R_101_mmdet_FPN_2x.yaml", {}),
    "fcos_improved": (
        ROOT / "configs" / "_base_" / "detectors" / "fcos.yaml",
        {
            "MODEL.FCOS.BOX_PREDICTION": "scaled",
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
        },
    ),
}
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.GFL.NUM_CLASSES": 5,
    "MODEL.FCOS.NUM_CLASSES": 5,
}
# GFL's groups are of at least 8 channels, which at its 256 channels is mmdetection's 32.
GROUPS = {"gfl": 8, "fcos": 32, "fcos_improved": 32}


def _tool():
    spec = importlib.util.spec_from_file_location("convert_mmdet_checkpoint", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _tool()


def _cfg(kind, **overrides):
    path, settings = CONFIGS[kind]
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_file(str(path))
    settings = {**TINY, **settings, **overrides}
    cfg.merge_from_list([part for item in settings.items() for part in item])
    return cfg


def _theirs(kind):
    return MMDetector(kind, groups=GROUPS[kind]).eval()


@pytest.fixture(params=CONFIGS)
def pair(request, tmp_path):
    """Their detector and ours with its weights, by way of files and of the strict loader."""
    theirs, ours = _theirs(request.param), build_model(_cfg(request.param)).eval()
    torch.save({"meta": {"CLASSES": ("a", "b")}, "state_dict": theirs.state_dict()}, tmp_path / "a")
    found = tool.convert(tool.read(str(tmp_path / "a")))
    path = str(tmp_path / "converted.pth")
    torch.save({"model": found}, path)
    load_weights_strict(ours, path, path, "teacher")
    assert set(found) == set(ours.state_dict())
    return request.param, theirs, ours


@torch.no_grad()
def test_converted_weights_give_the_same_outputs(pair):
    kind, theirs, ours = pair
    pixels = torch.randint(0, 256, (3, 128, 192), generator=torch.Generator().manual_seed(1))
    images = ours.preprocess_image([{"image": pixels}]).tensor
    mean, std = (torch.tensor(x)[:, None, None] for x in STATISTICS[kind])
    torch.testing.assert_close(images[0], (pixels - mean) / std)

    maps, (logits, distances, centerness) = theirs(images)
    features = ours.backbone(images)
    assert list(features) == ["p3", "p4", "p5", "p6", "p7"]
    _assert_all_close(features.values(), maps)
    outputs = ours.head(list(features.values()))
    _assert_all_close(outputs[0], logits)
    anchors = ours.anchor_generator(maps)
    for i, stride in enumerate(STRIDES):
        deltas = outputs[1][i][0].flatten(1).T  # (H * W, 4 or 4 * 17)
        if kind == "gfl":
            deltas = expected_distance(deltas.unflatten(1, (4, 17)))
        boxes = ours.box2box_transform.apply_deltas(deltas, anchors[i].tensor)
        expected = decode(distances[i][0], stride, 0.0 if kind == "gfl" else 0.5)
        torch.testing.assert_close(boxes, expected, rtol=1e-4, atol=1e-2)
    if kind != "gfl":
        _assert_all_close(outputs[2], centerness)


RGB = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
STATISTICS = {
    "gfl": RGB,
    "fcos": ([102.9801, 115.9465, 122.7717], [1.0, 1.0, 1.0]),
    "fcos_improved": ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0]),
}


def _assert_all_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
        assert b.std() > 1e-3, "a constant map proves nothing"


@pytest.mark.parametrize("kind", ["fcos", "fcos_improved"])
@torch.no_grad()
def test_a_teacher_gives_deltas_with_the_scale_of_their_level(kind):
    model = build_model(_cfg(kind)).eval()
    torch.nn.init.uniform_(model.head.scales, 0.5, 1.5)
    teacher = FrozenTeacher(model)
    features = teacher.features([{"image": torch.zeros(3, 128, 128)}])
    maps = list(features.values())
    first = torch.zeros(1, dtype=torch.long)
    regions = [
        LevelPositives(name, x.shape[-2:], 0, 1, first, first) for name, x in features.items()
    ]
    required = RequiredOutputs(requires=frozenset({"deltas"}), proposals="student")
    found = teacher_outputs(teacher, features, regions, required).deltas
    assert torch.equal(found, torch.cat([x[:, :, 0, 0] for x in model.head(maps)[1]]))


def test_an_fcos_of_mmdetection_trains():
    model = build_model(_cfg("fcos"))
    with EventStorage():
        losses = model(make_batch())
    sum(losses.values()).backward()
    assert torch.isfinite(model.head.scales.grad).all() and (model.head.scales.grad != 0).any()


def test_a_file_without_meta_is_read_and_one_with_objects_is_refused(tmp_path):
    torch.save({"a.weight": torch.ones(1)}, tmp_path / "bare.pth")
    assert list(tool.read(str(tmp_path / "bare.pth"))) == ["a.weight"]
    torch.save({"state_dict": {}, "meta": TOOL}, tmp_path / "object.pth")
    with pytest.raises(WeightsError, match="publish_model"):
        tool.read(str(tmp_path / "object.pth"))


def test_unknown_parts_are_named():
    with pytest.raises(WeightsError, match="bbox_head.atss_cls.weight"):
        tool.convert({"bbox_head.atss_cls.weight": torch.ones(1)})


def test_centerness_on_the_class_branch_needs_the_released_head():
    with pytest.raises(ConfigError, match="MODEL.FCOS.CENTERNESS_BRANCH is 'cls'"):
        build_model(_cfg("fcos", **{"MODEL.FCOS.BOX_PREDICTION": "linear"}))


def _run(monkeypatch, tmp_path, config):
    arguments = [str(tmp_path / "in.pth"), str(tmp_path / "new" / "out.pth"), "--config-file"]
    monkeypatch.setattr("sys.argv", [str(TOOL), *arguments, str(config)])
    return tool.main()


def test_the_command_refuses_a_config_of_another_detector(monkeypatch, tmp_path, capsys):
    torch.save({"state_dict": _theirs("gfl").state_dict()}, tmp_path / "in.pth")
    assert _run(monkeypatch, tmp_path, CONFIGS["fcos"][0]) == 2
    assert not (tmp_path / "new").exists()
    assert "tensors differ: missing backbone" in capsys.readouterr().err


def test_the_command_writes_a_checkpoint(monkeypatch, tmp_path):
    torch.save({"meta": {}, "state_dict": _theirs("fcos").state_dict()}, tmp_path / "in.pth")
    (tmp_path / "tiny.yaml").write_text(_cfg("fcos").dump())
    assert _run(monkeypatch, tmp_path, tmp_path / "tiny.yaml") == 0
    assert "head.scales" in torch.load(tmp_path / "new" / "out.pth")["model"]
