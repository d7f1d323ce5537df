# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a distilled step does beside the student's own, counted: it may not grow unnoticed."""

from collections import Counter

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from d2kd.benchmark.networks import build_networks, read_config, synthetic_batches
from tests.common import ROOT
from tests.common.helpers import count_calls

LEVELS = 4

# Preset of the shapes -> parts of the teacher that run, beside its backbone: how often the RPN's or
# the dense head's class branch, its box branch, and the two-stage box head.
RCNN = {
    "TAR": (0, 0, 1),
    "FRS": (LEVELS, 0, 0),
    "SSIM": (0, 0, 0),
    "SSIM+labels": (0, 0, 1),
    "hint": (0, 0, 0),
    "PKD": (0, 0, 0),
    "CWD": (0, 0, 0),
}
DENSE = {
    "TAR": (LEVELS, LEVELS),
    "FRS": (LEVELS, 0),
    "SSIM": (0, 0),
    "LD": (0, LEVELS),
    "FRS+LD": (LEVELS, LEVELS),
    "BCKD": (LEVELS, LEVELS),
    # Once on the teacher's features and once on the student's.
    "CrossKD": (2 * LEVELS, 2 * LEVELS),
    "CrossKD+PKD": (2 * LEVELS, 2 * LEVELS),
}
CASES = [("faster_rcnn", preset) for preset in RCNN] + [
    *(("retinanet", preset) for preset in ("TAR", "FRS", "SSIM")),
    *(("fcos", preset) for preset in ("TAR", "FRS", "SSIM")),
    *(("gfl", preset) for preset in ("FRS", "LD", "FRS+LD")),
    *((name, preset) for name in ("retinanet", "fcos", "gfl") for preset in ("BCKD", "CrossKD")),
    ("gfl", "CrossKD+PKD"),
]
IMAGES = 2


def _expected_syncs(detector, preset):
    """Operations at which the host learns a count from the device.

    It learns how many positives there are, in each image or on each level, and Detectron2's pooler
    how many of the teacher's regions fall on each level. Of a two-stage detector, if that is read.
    """
    if detector == "faster_rcnn":
        return Counter(nonzero=(IMAGES + LEVELS) * RCNN[preset][2])
    # fvcore's GIoU, FCOS's own box loss, looks at its boxes and picks those that overlap.
    giou = {"_local_scalar_dense": 2, "index": 5, "index_put_": 1, "index_put": 4}
    return Counter(nonzero=LEVELS) + Counter(giou if (detector, preset) == ("fcos", "TAR") else {})


class _CountSyncs(TorchDispatchMode):
    """Counts operations for whose result the host would wait on a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2")

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if name in self.NAMES or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def build():
    """(detector, preset) -> networks and a batch, each built once."""
    built = {}

    def get(detector, preset):
        if (detector, preset) not in built:
            name = "R_50_eighth_from_R_50_three_eighths_800"
            cfg = read_config(str(ROOT / f"configs/shapes/{preset}/{detector}_{name}.yaml"), OPTS)
            built[detector, preset] = build_networks(cfg, random_weights=True)
        pair = built[detector, preset]
        return pair, synthetic_batches(pair.cfg, (64, 64), IMAGES, boxes=3)[0]

    return get


OPTS = ["MODEL.DEVICE", "cpu"]


def _step(model, batch):
    """Forward and backward with the random sampling fixed."""
    torch.manual_seed(0)
    with EventStorage(), _CountSyncs() as syncs:
        sum(model(batch).values()).backward()
    return syncs.found


def _parts(model, detector):
    """The class branch, the box branch, and the box head of a detector."""
    if detector == "faster_rcnn":
        rpn = model.proposal_generator.rpn_head
        return rpn.objectness_logits, rpn.anchor_deltas, model.roi_heads.box_head
    return model.head.cls_score, model.head.bbox_pred


@pytest.mark.parametrize("detector, preset", CASES)
def test_calls_and_rows(build, detector, preset):
    pair, batch = build(detector, preset)
    model, teacher = pair.distiller(list(pair.losses)), pair.optimized_teacher.model
    ours = count_calls(pair.student.backbone, *_parts(pair.student, detector))
    theirs = count_calls(teacher.backbone, *_parts(teacher, detector))
    _, step = _observed(model, batch)
    assert [len(seen) for seen in ours] == [1, LEVELS, LEVELS, 1][: len(ours)]
    expected = (RCNN if detector == "faster_rcnn" else DENSE)[preset]
    assert tuple(len(seen) for seen in theirs) == (1, *expected)
    if detector == "faster_rcnn" and expected[2]:
        assert len(theirs[-1][0][0]) == len(step.regions), "rows are the positives"
        assert 0 < len(step.regions) < 48 * IMAGES / 2


@pytest.mark.parametrize("detector, preset", CASES)
def test_a_full_cache_runs_the_box_head_of_a_two_stage_teacher_alone(build, detector, preset):
    pair, batch = build(detector, preset)
    model, teacher = pair.distiller(list(pair.losses), cache="memory"), pair.optimized_teacher.model
    _observed(model, batch)
    theirs = count_calls(teacher.backbone, *_parts(teacher, detector))
    _, step = _observed(model, batch)
    if detector == "faster_rcnn":
        expected = (0, 0, 0, RCNN[preset][2])
    else:
        # CrossKD compares statistics of the whole batch, so the head runs on the cached features.
        expected = (0, *DENSE[preset]) if preset.startswith("CrossKD") else (0, 0, 0)
    assert tuple(len(seen) for seen in theirs) == expected
    cache = model.teacher.cache
    assert (cache.hits, cache.misses) == (IMAGES, IMAGES)


@pytest.mark.parametrize("detector, preset", CASES)
def test_a_cache_waits_no_more_for_the_device(build, detector, preset):
    pair, batch = build(detector, preset)
    model = pair.distiller(list(pair.losses), cache="memory")
    _step(model, batch)
    found, plain = _step(model, batch), _step(pair.stock, batch)
    assert found - plain == _expected_syncs(detector, preset)


def _observed(model, batch):
    torch.manual_seed(0)
    with EventStorage():
        return model.forward_pair(model.student, model.teacher, batch, model.required)


@pytest.mark.parametrize("detector, preset", CASES)
def test_host_device_syncs(build, detector, preset):
    pair, batch = build(detector, preset)
    distilled, plain = _step(pair.distiller(list(pair.losses)), batch), _step(pair.stock, batch)
    assert sum(plain.values()) > 0, "the counter counts"
    assert distilled - plain == _expected_syncs(detector, preset) and not plain - distilled
