# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Cached maps are those of the teacher run on each image alone; the losses hardly move."""

import copy

import pytest
import torch
from torch.nn.functional import pad

from d2kd.data.map_cache.image_digest import image_digest
from d2kd.modeling.paired_forward.cached_parts import cached_parts
from d2kd.utils.errors import ConfigError
from tests.common.detectors import FRS, detector_cfg, write_teachers
from tests.common.helpers import build_distiller, count_calls, make_batch, run

BOXES = ([[8, 12, 50, 60], [4, 4, 20, 30]], [[30, 20, 60, 44]], [[2, 8, 40, 62]])
SSIM = {"DISTILL.DISTANCES.SSIM.WINDOW": 5, "DISTILL.FEATURE.DISTANCE": "ssim"}
CASES = {
    "TAR": ("GeneralizedRCNN", {}),
    "FRS": ("GeneralizedRCNN", FRS),
    "SSIM": ("GeneralizedRCNN", {**SSIM, "DISTILL.LOSSES": ["feature"]}),
    "RetinaNet TAR": ("RetinaNet", {}),
    "RetinaNet FRS": ("RetinaNet", FRS),
    "FCOS SSIM": ("FCOS", SSIM),
    "LD": ("GFL", {"DISTILL.LOSSES": ["reg"], "DISTILL.REG.DISTANCE": "distribution_kl"}),
}
# What is kept of the teacher, in this order.
PARTS = {
    "TAR": ["features"],
    "FRS": ["features", "dense_logits"],
    "SSIM": ["features"],
    "RetinaNet TAR": ["features", "dense_logits", "box_maps"],
    "RetinaNet FRS": ["features", "dense_logits", "box_maps"],
    "FCOS SSIM": ["features", "dense_logits", "box_maps"],
    "LD": ["box_maps"],
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    return write_teachers(tmp_path_factory.mktemp("teachers"))


def _build(teachers, case, cache="memory", dtype="float32", **keys):
    detector, own = CASES[case]
    named = {"DISTILL.TEACHER.CACHE": str(cache), "DISTILL.TEACHER.CACHE_DTYPE": dtype}
    return build_distiller(detector_cfg(teachers, detector, {**own, **named, **keys}))


def _same_size():
    batch = make_batch(BOXES)
    for sample in batch:
        sample["image"] = sample["image"][:, :64, :64].clone()
        sample["instances"]._image_size = (64, 64)
    return batch


def _parts(model):
    return cached_parts(model.forward_pair, model.teacher, model.required)


@pytest.mark.parametrize("case", CASES)
def test_float32_is_the_teacher_on_the_image_alone_bit_for_bit(teachers, case):
    model, batch = _build(teachers, case), make_batch(BOXES)
    parts, run_teacher = _parts(model)
    assert parts == PARTS[case]
    with torch.no_grad():
        alone = [run_teacher([sample]) for sample in batch]
    for _ in range(2):  # cold, warm
        found = model.teacher.cache.fetch(batch, parts, run_teacher)
        for i, expected in enumerate(alone):
            for part in parts:
                for level, x in expected[part].items():
                    row = found[part][level][i, :, : x.shape[2], : x.shape[3]]
                    assert torch.equal(row, x[0]), (part, level)
    assert (model.teacher.cache.hits, model.teacher.cache.misses) == (len(batch), len(batch))


@pytest.mark.parametrize("case", CASES)
def test_images_of_one_size_have_the_losses_of_the_run_without_a_cache(teachers, case):
    batch, expected = _same_size(), None
    expected = run(_build(teachers, case, cache=""), batch)
    found = run(_build(teachers, case), batch)
    assert list(found) == list(expected)
    for name, loss in expected.items():
        same = torch.equal if "distill" not in name else torch.isclose
        # The teacher adds a batch of one in another order.
        assert same(found[name], loss, **({"rtol": 2e-4} if "distill" in name else {})), name


# The largest relative distance of a distillation loss from that of the padded batch: three images
# of 64, 80 and 96 columns, padded to 96, and a random teacher that sees all of an image at once.
# The features' losses are within 0.07; RetinaNet's box loss, which is small here, is the farthest.
FAR = {"float32": 0.17, "bfloat16": 0.17}


@pytest.mark.parametrize("dtype", FAR)
@pytest.mark.parametrize("case", CASES)
def test_how_far_the_losses_are_from_the_padded_batch(teachers, case, dtype):
    # A gate that opens at another box would hide how far the values are.
    batch, gate = make_batch(BOXES), {"DISTILL.REG.GATE": "none"}
    expected = run(_build(teachers, case, cache="", **gate), batch)
    found = run(_build(teachers, case, dtype=dtype, **gate), batch)
    for name, loss in expected.items():
        if "distill" in name:
            assert abs(found[name] / loss - 1) < FAR[dtype], name
        else:
            assert torch.equal(found[name], loss), name


def test_padding_holds_the_teachers_answer_to_padding(teachers):
    """Closer to the padded batch than zeros are, which are logits of a half."""
    model, batch = _build(teachers, "RetinaNet FRS"), make_batch(BOXES)
    parts, run_teacher = _parts(model)
    found = model.teacher.cache.fetch(batch, parts, run_teacher)["dense_logits"]["p2"]
    with torch.no_grad():
        padded = run_teacher(batch)["dense_logits"]["p2"]
    beyond = (slice(0, 1), slice(None), slice(None), slice(20, None))
    assert found[beyond].numel() and (found[beyond] == found[0, :, :1, -1:]).all()
    distance = (found[beyond] - padded[beyond]).abs().mean()
    assert distance < 0.3 * padded[beyond].abs().mean()


@pytest.mark.parametrize("kind", ["memory", "folder"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", ["TAR", "RetinaNet FRS", "LD"])
def test_a_full_cache_gives_what_the_filling_step_gave(teachers, tmp_path, case, dtype, kind):
    cache, batch = tmp_path if kind == "folder" else "memory", make_batch(BOXES)
    model = _build(teachers, case, cache, dtype)
    (runs,) = count_calls(model.teacher.model.backbone)
    start = copy.deepcopy(model.student.state_dict())
    cold = run(model, batch)
    # One by one, and one for the padding.
    assert [len(x[0]) for x in runs] == [1] * (len(batch) + 1)
    model.student.load_state_dict(start)
    warm = run(model, batch)
    assert len(runs) == len(batch) + 1
    # RetinaNet's own losses have a normaliser that moves.
    distilled = {name: loss for name, loss in cold.items() if "distill" in name}
    assert distilled and all(torch.equal(warm[name], x) for name, x in distilled.items())
    # Some images are known, others not.
    mixed = run(model, [batch[1], *make_batch(seed=9)])
    assert len(runs) == len(batch) + 3 and set(mixed) == set(cold)


def test_another_method_uses_what_it_shares(teachers, tmp_path):
    batch = make_batch(BOXES)
    first = _build(teachers, "RetinaNet TAR", tmp_path)
    run(first, batch)
    second = _build(teachers, "RetinaNet FRS", tmp_path)
    (runs,) = count_calls(second.teacher.model.backbone)
    run(second, batch)
    assert not runs


def test_what_does_not_fit_into_the_type_is_refused(teachers):
    model = _build(teachers, "TAR", dtype="float16")
    torch.nn.init.constant_(model.teacher.model.backbone.fpn_output2.weight, 1e6)
    with pytest.raises(ConfigError, match="CACHE_DTYPE to 'bfloat16'"):
        run(model, make_batch(BOXES))


def test_more_variants_than_expected_are_refused(teachers):
    model = _build(teachers, "TAR")
    model.teacher.cache.expect(4)
    for _ in range(2):
        run(model, make_batch(BOXES))
    with pytest.raises(ConfigError, match="more variants than the 4"):
        run(model, make_batch(BOXES, seed=8))


def test_the_digest_of_the_sample_is_believed(teachers):
    """It is made by the data workers; without one the step makes it."""
    model, batch = _build(teachers, "TAR"), make_batch(BOXES)
    run(model, batch)
    for sample in batch:
        sample["image_digest"] = image_digest(sample["image"])
        sample["image"] = pad(sample["image"], (0, 0, 0, 0))
    run(model, batch)
    assert (model.teacher.cache.hits, model.teacher.cache.misses) == (3, 3)
