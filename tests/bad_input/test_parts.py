# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Misspelt and unfitting parts of a detector are named with their key, in student and teacher."""

import pytest
import torch

from d2kd.engine import DistillTrainer
from d2kd.modeling import Distiller
from d2kd.utils.errors import ConfigError, D2kdError, PairMismatchError
from tests.common.helpers import (
    LEVELS,
    build_distiller,
    distill_cfg,
    make_batch,
    plain_cfg,
    run,
    write_teacher,
)

MISSPELT = [
    ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbon", "build_resnet_fpn_backbone"),
    ("MODEL.ROI_HEADS.NAME", "StandardROIHead", "StandardROIHeads"),
    ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHeads", "FastRCNNConvFCHead"),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "RPNN", "RPN"),
    ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerater", "DefaultAnchorGenerator"),
    ("MODEL.RPN.HEAD_NAME", "StandardRPNhead", "StandardRPNHead"),
    ("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHed", "MaskRCNNConvUpsampleHead"),
    ("MODEL.RESNETS.NORM", "FrozenBn", "FrozenBN"),
    ("MODEL.FPN.NORM", "gn", ""),
    ("MODEL.FCOS.NORM", "foo", ""),
]


@pytest.mark.parametrize("key, value, nearest", MISSPELT)
def test_a_misspelt_part_is_named_with_the_nearest(tmp_path, teacher_files, key, value, nearest):
    meant = f"Did you mean '{nearest}'" if nearest else ""
    for cfg in (plain_cfg(key, value), distill_cfg(teacher_files, key, value)):
        with pytest.raises(ConfigError, match=f"(?s)the student's.*{key} is '{value}'.*{meant}"):
            DistillTrainer.build_model(cfg)
    yaml = tmp_path / "teacher.yaml"
    cfg = plain_cfg(key, value, "MODEL.FPN.OUT_CHANNELS", 24)
    yaml.write_text(cfg.dump())
    with pytest.raises(ConfigError, match=f"(?s)the teacher's.*{key} is '{value}'.*{meant}"):
        Distiller(distill_cfg((yaml, teacher_files[1])))


def test_a_misspelt_architecture(teacher_files):
    with pytest.raises(ConfigError, match="META_ARCHITECTURE is 'RetinaNett'.*'RetinaNet'"):
        DistillTrainer.build_model(plain_cfg("MODEL.META_ARCHITECTURE", "RetinaNett"))


@pytest.mark.parametrize(
    "opts, words",
    [
        (["MODEL.BACKBONE.NAME", "build_resnet_backbone"], "RPN.IN_FEATURES has .*'p2'.*gives"),
        (["MODEL.RPN.IN_FEATURES", ["p2", "p9"]], "RPN.IN_FEATURES has .'p9'."),
        (["MODEL.ROI_HEADS.IN_FEATURES", ["p8"]], "ROI_HEADS.IN_FEATURES has .'p8'."),
        (["MODEL.RESNETS.DEPTH", 51], "BACKBONE.NAME .*: 51"),
        (["MODEL.FPN.FUSE_TYPE", "mul"], "BACKBONE.NAME "),
        (["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIalign"], "ROIalign"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]]], "cannot be built"),
    ],
)
def test_parts_that_do_not_fit(teacher_files, opts, words):
    with pytest.raises(D2kdError, match=words):
        Distiller(distill_cfg(teacher_files, *opts))


@pytest.mark.parametrize(
    "name, refusal",
    [
        ("ProposalNetwork", "the teacher's ProposalNetwork has no deltas: .*no logits: set"),
        ("SemanticSegmentor", "META_ARCHITECTURE is GeneralizedRCNN .*LOSSES to .'feature'."),
    ],
)
def test_teachers_without_boxes_teach_features(tmp_path, name, refusal):
    opts = ["MODEL.META_ARCHITECTURE", name, "MODEL.SEM_SEG_HEAD.IN_FEATURES", LEVELS[:4]]
    files = write_teacher(tmp_path, *opts, "INPUT.FORMAT", "RGB")
    cfg = distill_cfg(files, "DISTILL.LOSSES", ["feature"])
    losses = run(build_distiller(cfg), make_batch())
    assert torch.isfinite(losses["loss_distill_feature"])
    with pytest.raises(PairMismatchError, match=refusal):
        Distiller(distill_cfg(files))


def test_a_teacher_without_preprocessing_sees_the_images_as_it_would_itself(tmp_path):
    files = write_teacher(tmp_path, "MODEL.META_ARCHITECTURE", "ProposalNetwork")
    model = build_distiller(distill_cfg(files, "DISTILL.LOSSES", ["feature"]))
    seen = []
    model.teacher.model.backbone.register_forward_pre_hook(lambda _, x: seen.append(x[0].clone()))
    batch = make_batch()
    model.teacher.features(batch)
    with torch.no_grad():
        model.teacher.model([{"image": x["image"]} for x in batch])
    assert torch.equal(*seen)
