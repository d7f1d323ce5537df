# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""FCOS from yaml against the model zoo's FCOS from LazyConfig."""

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2kd.config.fcos import add_fcos_config
from d2kd.modeling.meta_arch.fcos import FCOS
from tests.common import ROOT

BASES = [ROOT / "configs/_base_" / name for name in ("detectors/fcos.yaml", "datasets/coco.yaml")]


def _zoo():
    return LazyConfig.load(get_config_file("COCO-Detection/fcos_R_50_FPN_1x.py"))


def _cfg():
    cfg = get_cfg()
    add_fcos_config(cfg)
    for base in BASES:
        cfg.merge_from_file(str(base))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.fixture(scope="module")
def pair():
    """The zoo's model and ours, ours with the zoo's weights."""
    torch.manual_seed(0)
    zoo, ours = instantiate(_zoo().model), build_model(_cfg())
    assert isinstance(ours, FCOS)
    # A fresh head finds nothing: let locations and classes differ, above the score threshold.
    for layer in (zoo.head.cls_score, zoo.head.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.1)
        torch.nn.init.normal_(layer.bias, std=1.0)
    ours.load_state_dict(zoo.state_dict(), strict=True)
    return zoo, ours


def _batch():
    generator = torch.Generator().manual_seed(1)
    boxes = [[[10, 12, 60, 90], [30, 40, 120, 100]], [[5, 5, 40, 30]]]
    return [
        {
            "image": torch.randint(0, 256, (3, 128, 112), generator=generator, dtype=torch.uint8),
            "instances": Instances(
                (128, 112),
                gt_boxes=Boxes(torch.tensor(b, dtype=torch.float32)),
                gt_classes=torch.arange(len(b)) + 3,
            ),
        }
        for b in boxes
    ]


def _losses(model, batch):
    with EventStorage():
        return model.train()(batch)


def test_state_dict_has_the_zoo_keys_and_shapes(pair):
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in pair]
    assert shapes[0] == shapes[1]


def test_losses_and_normaliser_equal_the_zoo_model(pair):
    zoo, ours = pair
    for _ in range(2):
        expected, got = _losses(zoo, _batch()), _losses(ours, _batch())
        assert set(got) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"} == set(expected)
        assert all(torch.equal(got[k], expected[k]) and expected[k] > 0 for k in expected)
    assert ours.loss_normalizer == zoo.loss_normalizer


@torch.no_grad()
def test_inference_equals_the_zoo_model(pair):
    expected, got = ([x["instances"] for x in model.eval()(_batch())] for model in pair)
    assert all(len(x) > 10 for x in expected)
    for a, b in zip(expected, got):
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)


def test_settings_equal_the_zoo_model(pair):
    names = ["center_sampling_radius", "focal_loss_alpha", "focal_loss_gamma", "num_classes"]
    names += ["test_score_thresh", "test_topk_candidates", "test_nms_thresh"]
    names += ["max_detections_per_image", "head_in_features"]
    zoo, ours = pair
    assert {n: getattr(ours, n) for n in names} == {n: getattr(zoo, n) for n in names}
    assert torch.equal(ours.pixel_mean, zoo.pixel_mean)
    assert torch.equal(ours.pixel_std, zoo.pixel_std)
    assert vars(ours.box2box_transform) == vars(zoo.box2box_transform)
    for a, b in zip(ours.anchor_generator.cell_anchors, zoo.anchor_generator.cell_anchors):
        assert torch.equal(a, b)


def test_yaml_says_what_the_zoo_config_says():
    zoo, cfg = _zoo(), _cfg()
    assert cfg.SOLVER.BASE_LR == zoo.optimizer.lr
    assert cfg.SOLVER.WEIGHT_DECAY == zoo.optimizer.weight_decay
    assert cfg.SOLVER.MAX_ITER == zoo.train.max_iter
    assert list(cfg.SOLVER.STEPS) == zoo.lr_multiplier.scheduler.milestones[:-1]
    assert cfg.SOLVER.WARMUP_ITERS / cfg.SOLVER.MAX_ITER == zoo.lr_multiplier.warmup_length
    assert cfg.SOLVER.IMS_PER_BATCH == zoo.dataloader.train.total_batch_size
    assert cfg.MODEL.WEIGHTS == zoo.train.init_checkpoint
    assert cfg.MODEL.FCOS.PRIOR_PROB == zoo.model.head.prior_prob
    assert cfg.MODEL.BACKBONE.FREEZE_AT == zoo.model.backbone.bottom_up.freeze_at
    resize = zoo.dataloader.train.mapper.augmentations[0]
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == list(resize.short_edge_length)
    assert cfg.INPUT.MAX_SIZE_TRAIN == resize.max_size


def test_every_key_reaches_the_model():
    cfg = _cfg()
    settings = {
        "NUM_CLASSES": ("num_classes", 7),
        "IN_FEATURES": ("head_in_features", ["p4", "p5", "p6"]),
        "CENTER_SAMPLING_RADIUS": ("center_sampling_radius", 2.5),
        "FOCAL_LOSS_ALPHA": ("focal_loss_alpha", 0.3),
        "FOCAL_LOSS_GAMMA": ("focal_loss_gamma", 1.0),
        "SCORE_THRESH_TEST": ("test_score_thresh", 0.1),
        "TOPK_CANDIDATES_TEST": ("test_topk_candidates", 50),
        "NMS_THRESH_TEST": ("test_nms_thresh", 0.4),
    }
    head = {"NUM_CONVS": 1, "NORM": "", "PRIOR_PROB": 0.5}
    # The kinds of box branch have tests of their own: tests/tools/test_convert_mmdet_checkpoint.py.
    kinds = {"BOX_PREDICTION", "CENTERNESS_BRANCH"}
    assert set(settings) | set(head) | kinds == set(cfg.MODEL.FCOS)
    cfg.MODEL.FCOS.update({key: value for key, (_, value) in settings.items()}, **head)
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    model = build_model(cfg)
    for name, value in settings.values():
        assert getattr(model, name) == value
    assert model.max_detections_per_image == 9
    assert len(model.head.cls_subnet) == 2, "one convolution and its ReLU, no norm"
    assert model.head.cls_score.bias.tolist() == [0] * 7


def test_further_levels_follow_the_last_fpn_level():
    cfg = _cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4"]
    cfg.MODEL.FCOS.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    shapes = build_model(cfg).backbone.output_shape()
    assert {k: v.stride for k, v in shapes.items()} == {f"p{i}": 2**i for i in range(2, 7)}


@pytest.mark.parametrize("keep", [[0], []])
def test_images_without_ground_truth_are_background(pair, keep):
    ours, batch = pair[1], _batch()
    for i, x in enumerate(batch):
        x["instances"] = x["instances"] if i in keep else x["instances"][:0]
    maps = ours.backbone(ours.preprocess_image(batch).tensor)
    anchors = ours.anchor_generator([maps[k] for k in ours.head_in_features])
    labels, boxes = ours.label_anchors(anchors, [x["instances"] for x in batch])
    for i, (labels_i, boxes_i) in enumerate(zip(labels, boxes)):
        assert len(labels_i) == len(boxes_i) == sum(len(a) for a in anchors)
        assert (labels_i == ours.num_classes).all() == (i not in keep)
    losses = _losses(ours, batch)
    assert all(torch.isfinite(v) for v in losses.values())
