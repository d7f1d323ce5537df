# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A teacher that pads to a square gives maps that lie over the student's images."""

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model

from d2kd.doctor.model_checks import check_square
from d2kd.modeling import Distiller, FrozenTeacher
from d2kd.modeling.build import build_teacher, read_teacher_config
from d2kd.modeling.compatibility import check_levels
from d2kd.utils.errors import PairMismatchError
from tests.common.helpers import distill_cfg, make_batch, plain_cfg, run, unscaled
from tests.common.lazy_files import LEVELS, SQUARE, toy_text, write_toy


def _teacher(folder, **kwargs):
    path = write_toy(folder, **kwargs)
    cfg = distill_cfg((path, ""))
    return build_teacher(read_teacher_config(cfg), cfg.INPUT.FORMAT), cfg


def _student(folder):
    """Pads to multiples of 16."""
    path = write_toy(folder, "student", width=4, seed=1, mean=(100, 100, 100))
    return instantiate(LazyConfig.load(str(path)).model)


def test_maps_are_cropped_to_the_student_s_images(tmp_path):
    teacher, _ = _teacher(tmp_path, square=SQUARE)
    student = _student(tmp_path)
    teacher.reuse_student_inputs(student)
    batch = make_batch()
    images = student.preprocess_image(batch)
    assert tuple(images.tensor.shape[-2:]) == (64, 80)
    features = teacher.features(batch, images)
    theirs = student.backbone(images.tensor)
    assert {n: x.shape[-2:] for n, x in features.items()} == {
        n: x.shape[-2:] for n, x in theirs.items()
    }
    # They are the square's, and not those of images padded otherwise.
    assert teacher.preprocess(batch).tensor.shape[-2:] == (SQUARE, SQUARE)
    whole = teacher.model.backbone(teacher.preprocess(batch).tensor)
    for name, stride in LEVELS.items():
        assert torch.equal(features[name], whole[name][..., : 64 // stride, : 80 // stride])
    # A cache runs single images, without the student's.
    single = teacher.run_backbone(batch[:1])
    assert single["p3"].shape[-2:] == (8, 8) and torch.equal(
        single["p3"], features["p3"][:1, :, :, :8]
    )


def test_levels_may_be_compared_whatever_the_padding(tmp_path):
    student = _student(tmp_path)
    for square, refused in ((SQUARE, False), (0, True)):
        teacher, _ = _teacher(tmp_path / str(square), square=square, multiple=32)
        if refused:
            with pytest.raises(PairMismatchError, match="pad images to multiples of"):
                check_levels(["p3"], student, teacher.model)
        else:
            check_levels(["p3"], student, teacher.model)


def test_a_larger_image_is_refused_by_name(tmp_path):
    teacher, cfg = _teacher(tmp_path, square=72)
    batch = make_batch()
    batch[1]["file_name"] = "wide.jpg"
    message = "wide.jpg has 80x64 pixels .* pads to 72x72: set INPUT.MAX_SIZE_TRAIN to 72 or less"
    for given in (batch, batch[1:]):
        with pytest.raises(PairMismatchError, match=message):
            teacher.features(given)


@pytest.mark.parametrize("cache", ["", "memory"])
def test_a_student_is_distilled_under_it(tmp_path, cache):
    teacher, cfg = _teacher(tmp_path, square=SQUARE)
    cfg.merge_from_list(["DISTILL.LOSSES", ["feature"], "DISTILL.FEATURE.LEVELS", ["p3", "p4"]])
    cfg.DISTILL.TEACHER.CACHE = cache
    model = Distiller(cfg).train()
    model.register_loss_hook("feature", unscaled)
    losses = run(model, make_batch())
    assert 0 < losses["loss_distill_feature"] < 1e4
    (finding,) = check_square(cfg, model)
    assert finding.status.value == "ok"
    cfg.INPUT.MAX_SIZE_TRAIN = SQUARE + 1
    (finding,) = check_square(cfg, model)
    assert finding.status.value == "warning" and f"set it to {SQUARE}" in finding.advice


def test_others_have_no_square(teacher_files):
    teacher = FrozenTeacher(build_model(plain_cfg()))
    assert teacher.preprocess(make_batch()).tensor.shape[-2:] == (64, 96)


VIT = """
from detectron2.modeling import SimpleFeaturePyramid, ViT

model.backbone = L(SimpleFeaturePyramid)(
    net=L(ViT)(
        img_size=96, embed_dim=16, depth=2, num_heads=2, window_size=4, window_block_indexes=[0],
        use_rel_pos=True, out_feature="last_feat",
    ),
    in_feature="last_feat", out_channels=16, scale_factors=(4.0, 2.0, 1.0, 0.5), square_pad=96,
)
"""


@pytest.mark.parametrize("losses", [["feature"], ["feature", "cls", "reg"]])
def test_vitdet_is_a_teacher(tmp_path, losses):
    """Of Detectron2's main branch; release 0.6 has no ViT."""
    pytest.importorskip("detectron2.modeling.backbone.vit")
    path = tmp_path / "vitdet.py"
    path.write_text(toy_text(width=16, order="RGB") + VIT)
    torch.manual_seed(1)
    model = instantiate(LazyConfig.load(str(path)).model)
    torch.save({"model": model.state_dict()}, tmp_path / "vitdet.pth")
    keys = ["MODEL.META_ARCHITECTURE", "RetinaNet", "DISTILL.LOSSES", losses]
    keys += ["MODEL.RETINANET.IN_FEATURES", ["p3", "p4"], "MODEL.RETINANET.NUM_CLASSES", 4]
    keys += ["MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32]], "MODEL.FPN.OUT_CHANNELS", 8]
    cfg = distill_cfg((path, tmp_path / "vitdet.pth"), *keys)
    cfg.DISTILL.FEATURE.LEVELS = ["p2", "p3", "p4", "p5"]
    distiller = Distiller(cfg).train()
    for name in losses:
        distiller.register_loss_hook(name, unscaled)
    found = run(distiller, make_batch())
    assert all(x.isfinite() for x in found.values()) and found["loss_distill_feature"] > 0
    large = make_batch([[[8, 12, 50, 60]]] * 4)
    with pytest.raises(PairMismatchError, match="pads to 96x96: set INPUT.MAX_SIZE_TRAIN to 96"):
        run(distiller, large)
