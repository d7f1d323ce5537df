# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A mapper of one's own: resumed exactly, its bad images named, and what a cache can keep of it."""

import random

import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.utils.env import seed_all_rng

from d2kd.data import build_train_loader
from d2kd.engine import DistillTrainer
from d2kd.utils.errors import ConfigError, DatasetError
from d2kd.utils.rng_state import get_random_state, set_random_state
from tests.common.helpers import distill_cfg
from tests.common.resumed_runs import (
    MIXED,
    differences,
    final_state,
    make_cfg,
    new_seed,
    register_mixed,
    resume_from,
    write_images,
)


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    write_images(folder)
    register_mixed(folder)
    yield folder
    DatasetCatalog.remove(MIXED)
    MetadataCatalog.remove(MIXED)


class Jitter:
    """Large-scale jitter, then the top left corner is another image's (a plain mosaic).

    It draws from all three global random streams.
    """

    def __init__(self, cfg):
        scale = T.ResizeScale(0.5, 2.0, 64, 64)
        self.records = DatasetCatalog.get(MIXED)
        # Detectron2's transforms draw from NumPy's.
        self.map = DatasetMapper(cfg, True, augmentations=[scale, T.FixedSizeCrop((64, 64))])

    def __call__(self, record):
        sample, other = self.map(record), self.map(random.choice(self.records))
        image = sample["image"].clone()
        image[:, :16, :16] = other["image"][:, :16, :16]
        return {**sample, "image": (image + torch.randint(0, 9, (1,))).to(torch.uint8)}


def _take(batches, count):
    return [
        [(x["image_id"], x["image"].numpy().tobytes()) for x in next(batches)] for _ in range(count)
    ]


@pytest.mark.parametrize("workers, grouped", [(0, True), (2, True), (2, False)])
def test_it_is_resumed_with_the_same_batches(tmp_path, workers, grouped):
    opts = ["DATALOADER.NUM_WORKERS", workers, "DATALOADER.ASPECT_RATIO_GROUPING", grouped]
    cfg = make_cfg(None, tmp_path, *opts)
    seed_all_rng(3)
    loader = build_train_loader(cfg, mapper=Jitter(cfg))
    batches = iter(loader)
    first = _take(batches, 3)
    state, streams = loader.state_dict(), get_random_state()
    expected = _take(batches, 4)
    assert len({image for batch in [*first, *expected] for _, image in batch}) == 14
    seed_all_rng(new_seed())
    resumed = build_train_loader(cfg, mapper=Jitter(cfg))
    resumed.load_state_dict(state)
    set_random_state(streams)
    assert _take(iter(resumed), 4) == expected


class JitterTrainer(DistillTrainer):
    """What docs/extending.md says to write."""

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg, mapper=Jitter(cfg))


def _train(cfg):
    seed_all_rng(new_seed() if cfg.OUTPUT_DIR.endswith("resumed") else 4)
    trainer = JitterTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()


def test_a_distilled_run_that_is_killed_ends_as_if_it_had_not(teacher_files, tmp_path):
    opts = ["DATALOADER.NUM_WORKERS", 1]
    _train(make_cfg(teacher_files, tmp_path / "whole", *opts))
    resume_from(tmp_path / "whole" / "model_0000001.pth", tmp_path / "resumed")
    _train(make_cfg(teacher_files, tmp_path / "resumed", *opts))
    found, expected = (final_state(tmp_path / name) for name in ("resumed", "whole"))
    assert differences(found, expected) == []


def test_its_bad_images_are_named_or_skipped(images, tmp_path):
    path = images / "1_48_64.png"
    good = path.read_bytes()
    path.write_bytes(good[:60])
    try:
        cfg = make_cfg(None, tmp_path)
        with pytest.raises(DatasetError, match="Image .*1_48_64.png cannot be read"):
            _take(iter(build_train_loader(cfg, DatasetMapper(cfg, True))), 9)
        cfg.DATALOADER.BAD_IMAGES = "skip"
        assert len(_take(iter(build_train_loader(cfg, DatasetMapper(cfg, True))), 9)) == 9
    finally:
        path.write_bytes(good)


def test_an_error_of_a_record_without_a_file_is_its_own(tmp_path):
    loader = build_train_loader(make_cfg(None, tmp_path), mapper=lambda record: record["pixels"])
    with pytest.raises(KeyError, match="pixels"):
        next(iter(loader))
    with pytest.raises(KeyError, match="pixels"):
        loader.stream.mapper({"image_id": 3})


def test_a_cache_takes_what_repeats_and_refuses_what_does_not(teacher_files, tmp_path):
    opts = ["DISTILL.TEACHER.CACHE", "memory", "INPUT.MIN_SIZE_TRAIN", (48, 64)]
    cfg = distill_cfg(teacher_files, "DATASETS.TRAIN", (MIXED,), *opts)
    seed_all_rng(3)
    with pytest.raises(ConfigError, match="made 10 different images of one in 10 calls, and INPUT"):
        build_train_loader(cfg, mapper=Jitter(cfg))
    loader = build_train_loader(cfg, mapper=DatasetMapper(cfg, True))
    assert all("image_digest" in x for x in next(iter(loader)))
    cfg.DISTILL.ENABLED = False
    build_train_loader(cfg, mapper=Jitter(cfg))


def test_counting_variants_leaves_the_random_streams(teacher_files):
    cfg, streams = distill_cfg(teacher_files, "DATASETS.TRAIN", (MIXED,)), []
    for cache in ("", "memory"):
        cfg.DISTILL.TEACHER.CACHE = cache
        seed_all_rng(3)
        build_train_loader(cfg, mapper=DatasetMapper(cfg, True))
        streams.append(get_random_state())
    assert streams[0] == streams[1]
