# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Classes of one's own that extend Detectron2's, or nothing: their own forward is what trains."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, build_backbone, build_model
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import ImageList
from torch import nn

from d2kd.config.detectors import get_detector, plain_facts
from d2kd.modeling import split_losses
from d2kd.modeling.paired_forward.box_heads import box_predictions
from d2kd.utils.errors import PairMismatchError
from tests.common.architectures import check_gradients, whole_batch
from tests.common.helpers import (
    LEVELS,
    K,
    build_distiller,
    count_calls,
    distill_cfg,
    plain_cfg,
    run,
    spread,
    write_teacher,
)

NO_GATE = ["DISTILL.REG.GATE", "none"]
FEATURES = ["DISTILL.LOSSES", ["feature"], "DISTILL.FEATURE.MASK", "uniform"]
RETINA = ["MODEL.RETINANET.IN_FEATURES", LEVELS, "MODEL.RETINANET.NUM_CLASSES", K]


class RCNNWithMore(GeneralizedRCNN):
    """A loss of its own, and a count that its forward keeps on itself."""

    def forward(self, batch):
        losses = super().forward(batch)
        if self.training:
            self.steps = getattr(self, "steps", 0) + 1
            losses["loss_more"] = self.roi_heads.box_predictor.cls_score.weight.square().mean()
        return losses


class RetinaWithMore(RetinaNet):
    def forward_training(self, images, features, predictions, gt_instances):
        losses = super().forward_training(images, features, predictions, gt_instances)
        return {**losses, "loss_more": features[0].square().mean()}


class Alone(nn.Module):
    """Extends nothing, and has no statistics of pixels."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.device = torch.device("cpu")

    def forward(self, batch):
        images = ImageList.from_tensors([x["image"].float() / 255 for x in batch], 32)
        return {"loss": self.backbone(images.tensor)["p3"].square().mean()}


class Twice(Alone):
    def forward(self, batch):
        return {"loss": sum(super(Twice, self).forward(batch)["loss"] for _ in range(2))}


class SpareHeads(StandardROIHeads):
    """A loss of its own; boxes as its base class predicts them."""

    def forward(self, images, features, proposals, targets=None):
        found, losses = super().forward(images, features, proposals, targets)
        return found, {**losses, "loss_spare": features["p2"].abs().mean()} if targets else losses


class SilentHeads(StandardROIHeads):
    """A box loss that its predictor is not asked for."""

    def _forward_box(self, features, proposals):
        pooled = self.box_pooler([features["p2"]] * 4, [x.proposal_boxes for x in proposals])
        return {"loss_box": self.box_predictor(self.box_head(pooled))[1].abs().mean()}


class ScaledHeads(StandardROIHeads):
    """Boxes by a method of its own."""

    def _forward_box(self, features, proposals):
        return super()._forward_box({k: 2 * x for k, x in features.items()}, proposals)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for registry, classes in (
        (META_ARCH_REGISTRY, (RCNNWithMore, RetinaWithMore, Alone, Twice)),
        (ROI_HEADS_REGISTRY, (SpareHeads, SilentHeads, ScaledHeads)),
    ):
        monkeypatch.setattr(registry, "_obj_map", dict(registry))
        for one in classes:
            registry.register(one)


def _check(distiller, cfg, batch):
    """Losses and gradients of a step are those of the plain detector."""
    stock = build_model(cfg).train()
    stock.load_state_dict(distiller.student.state_dict(), strict=True)
    expected = run(stock, batch)
    losses, distilled = split_losses(run(distiller, batch))
    assert list(losses) == list(expected)
    assert all(torch.equal(losses[k], expected[k]) for k in expected)
    assert all(x.isfinite() and x > 0 for x in distilled.values())
    for values in (losses, expected):
        sum(values.values()).backward()
    check_gradients(distiller.student, stock)
    return distilled


@pytest.mark.parametrize(
    "opts, losses",
    [
        (["MODEL.META_ARCHITECTURE", "RCNNWithMore"], 3),
        (["MODEL.ROI_HEADS.NAME", "SpareHeads"], 3),
        (["MODEL.META_ARCHITECTURE", "RetinaWithMore", *RETINA], 3),
        (["MODEL.META_ARCHITECTURE", "RetinaWithMore", *RETINA, "DISTILL.CROSS_HEAD", 1], 3),
        (["MODEL.META_ARCHITECTURE", "Alone", *FEATURES], 1),
    ],
    ids=str,
)
def test_the_student_trains_as_its_class_does(tmp_path, opts, losses):
    kind = ["MODEL.FPN.OUT_CHANNELS", 16] if "DISTILL.CROSS_HEAD" in opts else []
    files = write_teacher(tmp_path, *([] if "Alone" in opts else opts[:6]), *kind)
    distiller = build_distiller(distill_cfg(files, *opts, *NO_GATE))
    spread(distiller.student)
    distilled = _check(distiller, distill_cfg(files, *opts), whole_batch())
    assert len(distilled) == losses
    if "RCNNWithMore" in opts:
        assert distiller.student.steps == 1


def test_a_row_is_inherited_and_what_a_class_predicts_is_not():
    cfg = plain_cfg("MODEL.META_ARCHITECTURE", "RCNNWithMore")
    assert get_detector(cfg) is get_detector(plain_cfg())
    assert plain_facts(cfg).predicts is None
    alone = get_detector(plain_cfg("MODEL.META_ARCHITECTURE", "Alone"))
    assert alone.forward_pair == "forward_pair_features" and not alone.outputs


def test_every_part_runs_once_for_a_forward_of_ones_own(tmp_path):
    opts = ["MODEL.META_ARCHITECTURE", "RetinaWithMore", *RETINA]
    distiller = build_distiller(distill_cfg(write_teacher(tmp_path, *opts), *opts))
    calls = count_calls(distiller.student.backbone, distiller.student.head.cls_score)
    run(distiller, whole_batch())
    assert [len(seen) for seen in calls] == [1, len(LEVELS)]


def test_a_backbone_that_runs_twice_cannot_be_recorded(teacher_files):
    distiller = build_distiller(
        distill_cfg(teacher_files, "MODEL.META_ARCHITECTURE", "Twice", *FEATURES)
    )
    backbone = distiller.student.backbone
    with pytest.raises(PairMismatchError, match="calls its backbone 2 times"):
        run(distiller, whole_batch())
    assert distiller.student.backbone is backbone, "an error leaves nothing in its place"


def test_box_losses_that_are_not_the_predictor_s_cannot_be_recorded(teacher_files):
    opts = ["MODEL.ROI_HEADS.NAME", "SilentHeads"]
    with pytest.raises(PairMismatchError, match="calls the losses of its box predictor 0 times"):
        run(build_distiller(distill_cfg(teacher_files, *opts)), whole_batch())
    run(build_distiller(distill_cfg(teacher_files, *opts, *FEATURES)), whole_batch())


def test_boxes_by_a_method_of_ones_own_are_read_of_a_student_and_registered_for_a_teacher(
    tmp_path, teacher_files, monkeypatch
):
    opts = ["MODEL.ROI_HEADS.NAME", "ScaledHeads"]
    distiller = build_distiller(distill_cfg(teacher_files, *opts, *NO_GATE))
    spread(distiller.student)
    _check(distiller, distill_cfg(teacher_files, *opts), whole_batch())
    files = write_teacher(tmp_path, *opts)
    with pytest.raises(
        PairMismatchError, match="teacher's ScaledHeads predicts boxes in a way of its own: reg.*"
    ):
        build_distiller(distill_cfg(files))
    build_distiller(distill_cfg(files, "DISTILL.LOSSES", ["feature"]))
    standard = box_predictions.dispatch(StandardROIHeads)
    box_predictions.register(ScaledHeads, standard_on_scaled(standard))
    distilled = split_losses(run(build_distiller(distill_cfg(files, *NO_GATE)), whole_batch()))[1]
    assert all(x > 0 for x in distilled.values())


def test_a_teacher_that_cannot_prepare_images_is_refused(tmp_path):
    files = write_teacher(tmp_path, "MODEL.META_ARCHITECTURE", "Alone")
    with pytest.raises(PairMismatchError, match="Alone has neither preprocess_image"):
        build_distiller(distill_cfg(files, *FEATURES))


def standard_on_scaled(standard):
    def predict(heads, teacher, features, regions):
        return standard(heads, teacher, {k: 2 * x for k, x in features.items()}, regions)

    return predict
