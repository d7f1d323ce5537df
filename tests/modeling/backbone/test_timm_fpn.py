# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""timm's networks as backbones: levels, starting weights, pixels, frozen stages."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from d2kd.config.student import dump_student_config, student_config
from d2kd.utils.errors import ConfigError, WeightsError
from tests.common.helpers import distill_cfg, make_batch, plain_cfg, run

timm = pytest.importorskip("timm")
NETWORKS = (
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "tf_efficientnet_lite0",
    "resnet18",
    "convnext_atto",
    "regnetx_002",
)
RGB = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [127.5] * 3, "MODEL.PIXEL_STD", [127.5] * 3]


def timm_cfg(*opts, name="resnet18", builder="build_timm_fpn_backbone"):
    names = ["MODEL.BACKBONE.NAME", builder, "MODEL.TIMM.NAME", name]
    return plain_cfg(*names, *opts)


def build(cfg):
    return build_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("name", NETWORKS)
def test_levels_have_their_stride_and_channels(name):
    backbone = build(timm_cfg(name=name)).eval()
    shapes = backbone.output_shape()
    assert {k: x.stride for k, x in shapes.items()} == dict(p2=4, p3=8, p4=16, p5=32, p6=64)
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    for level, x in maps.items():
        stride = shapes[level].stride
        assert x.shape == (1, 16, 64 // stride, -(-96 // stride)), level


@pytest.mark.parametrize(
    "builder, source",
    [
        ("build_retinanet_timm_fpn_backbone", "res5"),
        ("build_fcos_timm_fpn_backbone", "p5"),
        ("build_gfl_timm_fpn_backbone", "p5"),
    ],
)
def test_dense_detectors_get_p6_and_p7(builder, source):
    opts = ["MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]]
    backbone = build(timm_cfg(*opts, builder=builder))
    assert list(backbone.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    assert backbone.top_block.in_feature == source


def test_a_student_of_timm_is_distilled(teacher_files):
    cfg = distill_cfg(
        teacher_files,
        "MODEL.BACKBONE.NAME",
        "build_timm_fpn_backbone",
        "MODEL.TIMM.NAME",
        "resnet18",
    )
    from tests.common.helpers import build_distiller

    model = build_distiller(cfg)
    losses = run(model, make_batch())
    sum(losses.values()).backward()
    assert "loss_distill_feature" in losses
    assert all(p.grad is not None for p in model.student.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_file_of_weights_is_loaded_whole(tmp_path, name):
    torch.manual_seed(3)
    whole = timm.create_model(name)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    data = timm.data.resolve_data_config({}, model=whole)
    pixels = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [255 * x for x in data["mean"]]]
    pixels += ["MODEL.PIXEL_STD", [255 * x for x in data["std"]]]
    opts = ["MODEL.TIMM.WEIGHTS", str(tmp_path / "w.pth"), *pixels]
    network = build(timm_cfg(*opts, name=name)).bottom_up.network.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.eval().forward_features(image)
        found = network(image)[-1]
    if name == "resnet18":
        assert torch.equal(found, expected)
    saved = {k.replace(".", "_"): x for k, x in whole.state_dict().items()}
    assert all(x.equal(saved[k.replace(".", "_")]) for k, x in network.state_dict().items())


def test_a_file_without_all_tensors_is_refused(tmp_path):
    content = timm.create_model("resnet18").state_dict()
    del content["layer2.0.conv1.weight"]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="MODEL.TIMM.WEIGHTS .* lacks 1 of .*layer2.0.conv1"):
        build(timm_cfg("MODEL.TIMM.WEIGHTS", str(tmp_path / "w.pth")))


def test_pretrained_weights_want_their_own_pixels(tmp_path):
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "w.pth")
    opts = ["MODEL.TIMM.WEIGHTS", str(tmp_path / "w.pth")]
    with pytest.raises(ConfigError) as error:
        build(timm_cfg(*opts, name="tf_efficientnet_lite0"))
    assert "INPUT.FORMAT is BGR: set it to RGB" in str(error.value)
    assert "MODEL.PIXEL_STD is [57.0, 58.0, 59.0]: set it to [127.5" in str(error.value)
    build(timm_cfg(*opts, *RGB, name="tf_efficientnet_lite0"))


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.TIMM.NAME", "resnet19"], "timm does not know. Did you mean"),
        (["MODEL.TIMM.NORM", "GN"], "MODEL.TIMM.NORM is 'GN'"),
        (["MODEL.FPN.IN_FEATURES", ["res1"]], "MODEL.FPN.IN_FEATURES names"),
    ],
)
def test_wrong_keys_are_named(opts, message):
    with pytest.raises(ConfigError, match=message):
        build(timm_cfg(*opts))


def test_without_timm_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ConfigError, match="d2kd\\[timm\\]"):
        build(timm_cfg())


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_large_100", "convnext_atto"])
def test_freeze_at_2_freezes_up_to_stride_4(name):
    network = build(timm_cfg("MODEL.BACKBONE.FREEZE_AT", 2, name=name)).bottom_up
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    free = [n for n, p in network.named_parameters() if p.requires_grad]
    start = {k: x.clone() for k, x in network.state_dict().items()}
    maps = network.train()(torch.randn(2, 3, 64, 64))
    assert frozen and free and not maps["res2"].requires_grad and maps["res3"].requires_grad
    # A statistic of BatchNorm moves in a forward, if it is not frozen.
    names = list(start)
    moved = [i for i, k in enumerate(names) if not network.state_dict()[k].equal(start[k])]
    assert bool(moved) == (name != "convnext_atto")
    assert all(i > names.index(free[0]) for i in moved)


def test_frozen_norm_moves_no_statistics():
    backbone = build(timm_cfg("MODEL.TIMM.NORM", "FrozenBN", name="mobilenetv3_large_100")).train()
    before = {k: x.clone() for k, x in backbone.bottom_up.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    assert all(x.equal(before[k]) for k, x in backbone.bottom_up.state_dict().items())


def test_student_yaml_has_the_network_without_its_start():
    cfg = timm_cfg("MODEL.TIMM.WEIGHTS", "w.pth", name="mobilenetv3_large_100")
    student = student_config(cfg)
    assert (student.MODEL.TIMM.NAME, student.MODEL.TIMM.WEIGHTS) == ("mobilenetv3_large_100", "")
    assert dump_student_config(student).startswith("# Read after d2kd.add_d2kd_config, which adds")
    assert "TIMM" not in student_config(plain_cfg()).MODEL


def test_out_indices_choose_the_maps():
    opts = ["MODEL.TIMM.OUT_INDICES", [2, 3], "MODEL.FPN.IN_FEATURES", ["res3", "res4"]]
    backbone = build(timm_cfg(*opts))
    assert list(backbone.bottom_up.output_shape()) == ["res3", "res4"]


def test_pretrained_asks_timm_for_its_weights(monkeypatch):
    asked, create = [], timm.create_model

    def note(name, pretrained=False, **kwargs):
        asked.append(pretrained)
        return create(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", note)
    build(timm_cfg())
    assert not any(asked)
    with pytest.raises(ConfigError, match="INPUT.FORMAT is BGR: set it to RGB"):
        build(timm_cfg("MODEL.TIMM.PRETRAINED", True))
    assert asked[-1]
