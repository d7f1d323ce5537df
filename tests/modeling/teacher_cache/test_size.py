# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The size of a cache is known before it is filled, and too large a one is refused."""

import pytest
import torch

from d2kd.data.map_cache.stores import nbytes
from d2kd.data.map_cache.variants import count_variants, network_size, variants_of
from d2kd.engine.prepare_cache import measure_cache, prepare_cache
from d2kd.modeling.paired_forward.cached_parts import cached_parts
from d2kd.modeling.teacher_cache.size import CacheSize, check_fits, estimate_size
from d2kd.utils.errors import ConfigError
from tests.common.helpers import build_distiller, distill_cfg, plain_cfg

FILES = ("teacher.yaml", "teacher.pth")


@pytest.mark.parametrize(
    "opts, expected",
    [
        ([], 2),
        (["INPUT.RANDOM_FLIP", "none"], 1),
        (["INPUT.RANDOM_FLIP", "vertical", "INPUT.MIN_SIZE_TRAIN", (48, 64, 48)], 4),
        (["INPUT.MIN_SIZE_TRAIN", (40, 49), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], 20),
    ],
)
def test_variants(opts, expected):
    cfg = plain_cfg(*opts)
    assert count_variants(cfg) == expected == len(set(variants_of(cfg)))


def test_network_size_is_detectron2s():
    cfg = plain_cfg("INPUT.MAX_SIZE_TRAIN", 96)
    for variant in variants_of(cfg):
        for height, width in ((48, 64), (64, 48), (30, 200), (64, 64)):
            image = torch.zeros(height, width, 3, dtype=torch.uint8).numpy()
            for augmentation in variant.augmentations(cfg):
                image = augmentation.get_transform(image).apply_image(image)
            found = network_size(height, width, variant.min_size, 96)
            assert max(abs(a - b) for a, b in zip(found, image.shape)) <= 1


def test_estimate():
    cfg = plain_cfg("INPUT.MIN_SIZE_TRAIN", (64,))
    records = 3 * [{"height": 64, "width": 64}] + [{"height": 64, "width": 65}]
    size = estimate_size(cfg, records, 0.5, 32)
    # MAX_SIZE_TRAIN is 64: 65 columns become 64, and 64 rows 63.
    assert size == CacheSize(4, 2, 4 * 2 * 64 * 64 // 2)
    assert estimate_size(cfg, [*records, {}], 0.5, 32) == CacheSize(5, 2, 5 * 2 * 64 * 64 // 2)
    assert estimate_size(cfg, [], 0.5, 32).total == 0


def test_hit_rate():
    size = CacheSize(images=100, variants=2, total=1)
    # In one epoch everything is new; in many only the two variants of each image are.
    assert size.hit_rate(100) == 0 and size.hit_rate(1) == 0
    assert size.hit_rate(200) == pytest.approx(0.25)
    assert size.hit_rate(100_000) == pytest.approx(0.998)


def test_too_large_is_refused_with_what_to_set():
    size = CacheSize(1000, 2, 3 * 2**30)
    for opts, words in (([], "half of the free"), (["DISTILL.TEACHER.CACHE_GIB", 2.0], "GIB 2.0")):
        cfg = distill_cfg(FILES, "DISTILL.TEACHER.CACHE", "memory", *opts)
        check_fits(cfg, size, 3 * 2**30)
        with pytest.raises(ConfigError, match=f"variants x 1.61 MB = 3.00 GiB .*{words}"):
            check_fits(cfg, size, 3 * 2**30 - 1)


@pytest.fixture
def model(teacher_files):
    cfg = distill_cfg(teacher_files, "DISTILL.TEACHER.CACHE", "memory")
    return cfg, build_distiller(cfg)


def test_what_is_measured_is_what_is_kept(model):
    cfg, distiller = model
    record, cache = {"height": 64, "width": 64}, distiller.teacher.cache
    parts, run_teacher = cached_parts(distiller.forward_pair, distiller.teacher, distiller.required)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    cache.fill({"image": image, "image_digest": "aa"}, parts, run_teacher)
    kept = sum(nbytes(cache.store.get(part, "aa")) for part in parts)
    size = measure_cache(cfg, distiller, [record])
    assert size.entries == 2 and size.total == pytest.approx(2 * kept, rel=0.02)


def test_a_training_is_refused_before_it_starts(model):
    cfg, distiller = model
    records = 10 * [{"height": 64, "width": 64}]
    state = torch.get_rng_state()
    prepare_cache(cfg, distiller, records)
    assert torch.equal(torch.get_rng_state(), state), "the run's random numbers stay"
    distiller.teacher.cache.store.limit = 1000
    with pytest.raises(ConfigError, match="needs 10 images x 2 variants"):
        prepare_cache(cfg, distiller, records)


def test_an_endless_set_is_warned_of(model, caplog):
    prepare_cache(*model, None)
    assert "may not hold it" in caplog.text
