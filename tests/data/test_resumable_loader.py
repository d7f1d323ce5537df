# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The training loader gives stock Detectron2's batches, and goes on after any of them."""

import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image

from d2kd.config.defaults import add_d2kd_config
from d2kd.data.resumable_loader import build_train_loader
from d2kd.utils.errors import ConfigError, DatasetError
from d2kd.utils.rng_state import get_random_state, kept_random_state, set_random_state
from tests.common.helpers import plain_cfg

NAME = "loader_train"
BATCHES = 9


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory):
    """Seven images, wide and high ones; a category that stands in one alone."""
    folder = tmp_path_factory.mktemp("loader")
    rng = np.random.default_rng(0)
    records = []
    for i in range(7):
        width, height = (24, 16) if i % 3 else (16, 24)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        box = {"bbox": [2, 2, 14, 14], "bbox_mode": BoxMode.XYXY_ABS, "category_id": int(i == 0)}
        record = {"file_name": str(folder / f"{i}.png"), "image_id": i, "annotations": [box]}
        records.append({**record, "width": width, "height": height})
    DatasetCatalog.register(NAME, lambda: records)
    yield folder
    DatasetCatalog.remove(NAME)


def _cfg(workers, *opts):
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.8  # Detectron2 reads it, but declares no default
    opts = ["DATASETS.TRAIN", (NAME,), "DATALOADER.NUM_WORKERS", workers, *opts]
    opts += ["SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", (16, 20, 24, 28)]
    opts += ["DATALOADER.REPEAT_THRESHOLD", 0.5]
    cfg.merge_from_list([*opts, "INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.8, 0.8]])
    return cfg


def _take(batches, count):
    """What tells batches apart, while the training draws random numbers as well."""
    taken = []
    for _ in range(count):
        taken.append([(x["image_id"], x["image"].numpy().tobytes()) for x in next(batches)])
        taken.append((torch.rand(1).item(), np.random.rand(), random.random()))
    return taken


def _saved(state, folder):
    torch.save(state, folder / "state.pth")
    return torch.load(folder / "state.pth", weights_only=True)


VARIANTS = [
    (workers, grouped, "TrainingSampler")
    for workers, grouped in [(0, False), (0, True), (1, True), (2, False), (3, True)]
]
VARIANTS += [(2, True, "RepeatFactorTrainingSampler"), (0, True, "RandomSubsetTrainingSampler")]


@pytest.mark.parametrize("workers, grouped, sampler", VARIANTS)
def test_as_stock_and_exact_after_any_batch(tmp_path, workers, grouped, sampler):
    opts = ["DATALOADER.ASPECT_RATIO_GROUPING", grouped, "DATALOADER.SAMPLER_TRAIN", sampler]
    cfg = _cfg(workers, *opts)
    seed_all_rng(3)
    stock = _take(iter(build_detection_train_loader(cfg)), BATCHES)
    seed_all_rng(3)
    loader = build_train_loader(cfg)
    batches = iter(loader)
    taken, states = [], []
    for _ in range(BATCHES):
        taken += _take(batches, 1)
        states.append(_saved([loader.state_dict(), get_random_state()], tmp_path))
    assert taken == stock
    assert len({images[0] for batch in taken[::2] for images in batch}) > 3
    for done in (1, 2, 3, 6):
        seed_all_rng(77 + done)
        resumed = build_train_loader(cfg)
        resumed.load_state_dict(states[done - 1][0])
        set_random_state(states[done - 1][1])
        again = iter(resumed)
        assert _take(again, 2) == taken[2 * done : 2 * done + 4], f"after batch {done}"
        # Resumed twice: the state of the resumed loader is that of the first one.
        state = _saved([resumed.state_dict(), get_random_state()], tmp_path)
        assert repr(state) == repr(states[done + 1])


def test_a_changed_set_up_is_named_and_goes_on_at_the_same_place(caplog):
    seed_all_rng(3)
    first = build_train_loader(_cfg(0, "DATALOADER.ASPECT_RATIO_GROUPING", False))
    batches = iter(first)
    _take(batches, 2)
    state = first.state_dict()
    expected = [x["image_id"] for _ in range(2) for x in next(batches)]
    second = build_train_loader(_cfg(1, "DATALOADER.ASPECT_RATIO_GROUPING", False))
    second.load_state_dict(state)
    assert "not exactly" in caplog.text and "data workers: 0, now 1" in caplog.text
    batches = iter(second)
    assert [x["image_id"] for _ in range(2) for x in next(batches)] == expected
    # And from there on exactly.
    state = second.state_dict()
    expected = _take(batches, 1)[0]
    third = build_train_loader(_cfg(1, "DATALOADER.ASPECT_RATIO_GROUPING", False))
    third.load_state_dict(state)
    assert _take(iter(third), 1)[0] == expected


def test_another_data_set_begins_at_its_start(caplog):
    first = build_train_loader(_cfg(0))
    _take(iter(first), 2)
    second = build_train_loader(_cfg(0, "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"))
    second.load_state_dict(first.state_dict())
    assert "sampler: TrainingSampler, now Repeat" in caplog.text
    assert second.stream.start is None


@pytest.mark.parametrize("workers", [0, 2])
def test_what_takes_a_bad_image_s_place_is_resumed_too(images, tmp_path, workers):
    good = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(good[:60])
    try:
        cfg = _cfg(workers, "DATALOADER.BAD_IMAGES", "skip")
        seed_all_rng(3)
        loader = build_train_loader(cfg)
        batches = iter(loader)
        _take(batches, 2)
        state, streams = loader.state_dict(), get_random_state()
        expected = _take(batches, 4)
        resumed = build_train_loader(cfg)
        resumed.load_state_dict(state)
        set_random_state(streams)
        assert _take(iter(resumed), 4) == expected
    finally:
        (images / "1.png").write_bytes(good)


def test_a_set_without_one_good_image_is_an_error():
    loader = build_train_loader(_cfg(0))
    loader.stream.mapper = lambda record: None
    with pytest.raises(DatasetError, match="all are skipped"):
        next(iter(loader))


def test_random_streams_are_kept(tmp_path):
    seed_all_rng(5)
    with kept_random_state():
        first = [random.random(), np.random.randn(), torch.rand(1).item(), random.gauss(0, 1)]
    state = _saved(get_random_state(), tmp_path)
    second = [random.random(), np.random.randn(), torch.rand(1).item(), random.gauss(0, 1)]
    set_random_state(state)
    third = [random.random(), np.random.randn(), torch.rand(1).item(), random.gauss(0, 1)]
    assert first == second == third


def test_no_training_set_is_named():
    with pytest.raises(ConfigError, match="DATASETS.TRAIN is empty: set it to the sets"):
        build_train_loader(plain_cfg("DATASETS.TRAIN", ()))
