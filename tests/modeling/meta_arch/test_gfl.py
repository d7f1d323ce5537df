# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""GFL built from the config: its head, anchors, box encoding and labels."""

import pytest
import torch
from detectron2.layers import CycleBatchNormList, FrozenBatchNorm2d
from detectron2.structures import Boxes
from torch import nn

from d2kd.modeling.meta_arch.gfl import GFL, StrideBoxTransform
from tests.common.tiny_gfl import build_gfl, head_outputs, make_batch, spread_gfl


@pytest.fixture
def model():
    return spread_gfl()


def test_the_coco_config_builds_the_paper_detector():
    model = build_gfl(
        **{
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
            "MODEL.FPN.OUT_CHANNELS": 256,
            "MODEL.GFL.NUM_CONVS": 4,
            "MODEL.GFL.NUM_CLASSES": 80,
        }
    )
    assert isinstance(model, GFL)
    shapes = {k: tuple(v.shape) for k, v in model.head.state_dict().items()}
    for branch in ("cls_subnet", "bbox_subnet"):
        convs = [k for k, v in shapes.items() if k.startswith(branch) and v == (256, 256, 3, 3)]
        assert len(convs) == 4
    assert shapes["cls_score.weight"] == (80, 256, 3, 3)
    assert shapes["bbox_pred.weight"] == (4 * 17, 256, 3, 3)
    assert shapes["scales"] == (5,)
    norms = [m for m in model.head.modules() if isinstance(m, nn.GroupNorm)]
    assert [m.num_groups for m in norms] == [32] * 8
    assert any(isinstance(m, FrozenBatchNorm2d) for m in model.backbone.modules())
    anchors = model.anchor_generator([torch.zeros(1, 1, 2, 2)] * 5)
    for stride, level in zip((8, 16, 32, 64, 128), anchors):
        centres = [[0, 0], [stride, 0], [0, stride], [stride, stride]]
        assert level.get_centers().tolist() == centres
        assert (level.tensor[:, 2:] - level.tensor[:, :2] == 8 * stride).all()


def test_p7_is_made_from_p6_without_a_relu():
    backbone, other = (
        build_gfl().backbone,
        build_gfl(**{"MODEL.BACKBONE.NAME": "build_fcos_resnet_fpn_backbone"}).backbone,
    )
    assert list(backbone.state_dict()) == list(other.state_dict())
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
        top = backbone.top_block
        assert (maps["p6"] < 0).any(), "a ReLU would change something"
        torch.testing.assert_close(maps["p6"], top.p6(maps["p5"]))
        torch.testing.assert_close(maps["p7"], top.p7(maps["p6"]))


def test_first_scores_are_the_prior():
    _, (logits, _) = head_outputs(build_gfl(), make_batch())
    probabilities = torch.cat([x.flatten() for x in logits]).sigmoid()
    assert probabilities.mean().item() == pytest.approx(0.01, rel=0.1)


def test_the_number_of_bins_follows_the_config():
    model, batch = build_gfl(**{"MODEL.GFL.REG_MAX": 7}), make_batch()
    _, (_, bins) = head_outputs(model, batch)
    assert {x.shape[1] for x in bins} == {4 * 8}
    assert all(torch.isfinite(x) for x in model(batch).values())
    assert len(model.eval()(batch)) == len(batch)


@pytest.mark.parametrize("norm, kind", [("BN", CycleBatchNormList), ("", nn.ReLU)])
def test_the_head_has_the_norm_of_the_config(norm, kind):
    # CycleBatchNormList: statistics of its own for each level.
    for branch in ("cls_subnet", "bbox_subnet"):
        assert isinstance(getattr(build_gfl(**{"MODEL.GFL.NORM": norm}).head, branch)[1], kind)


def test_each_branch_alone_equals_forward_and_scales_its_own_level(model):
    with torch.no_grad():
        model.head.scales.copy_(torch.arange(1.0, 6.0))
        maps, (logits, bins) = head_outputs(model, make_batch())
        assert all(torch.equal(a, b) for a, b in zip(logits, model.head.class_logits(maps)))
        assert all(torch.equal(a, b) for a, b in zip(bins, model.head.box_bins(maps)))
        model.head.scales.fill_(1)
        plain = model.head.box_bins(maps)
    for i, (scaled, x) in enumerate(zip(bins, plain)):
        torch.testing.assert_close(scaled, (i + 1) * x)
        assert logits[i].shape[1:] == (5, *maps[i].shape[2:])
        assert scaled.shape[1:] == (68, *maps[i].shape[2:])


def test_distances_are_in_strides_from_the_anchor_centre():
    transform = StrideBoxTransform(anchor_scale=8)
    anchors = torch.tensor([[8.0, 40, 72, 104], [-56, -56, 72, 72]])  # 64 at stride 8, 128 at 16
    boxes = torch.tensor([[24.0, 64, 48, 152], [0, -8, 40, 72]])  # centres (40, 72) and (8, 8)
    distances = torch.tensor([[2.0, 1, 1, 10], [0.5, 1, 2, 4]])
    torch.testing.assert_close(transform.get_deltas(anchors, boxes), distances)
    torch.testing.assert_close(transform.apply_deltas(distances, anchors), boxes)


def test_labels_and_matched_boxes_of_images_with_and_without_boxes(model):
    batch = make_batch(([[10, 12, 60, 90], [30, 40, 120, 100]], []))
    maps, _ = head_outputs(model, batch)
    anchors = model.anchor_generator(maps)
    labels, boxes = model.label_anchors(anchors, [x["instances"] for x in batch])
    assert sorted(labels[0].unique().tolist()) == [2, 3, 5]
    assert (labels[1] == 5).all() and labels[0].dtype == labels[1].dtype == torch.int64
    gt = batch[0]["instances"].gt_boxes.tensor
    for index, label in enumerate((2, 3)):
        assert (boxes[0][labels[0] == label] == gt[index]).all()
    assert boxes[1].shape == boxes[0].shape == (len(Boxes.cat(anchors)), 4)
