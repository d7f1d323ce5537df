# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The images that an exported file is calibrated, compared, timed and evaluated on."""

from itertools import islice
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..data import build_mapper
from ..data.datasets.registered import load_registered
from ..utils.errors import ConfigError

__all__ = ["read_images", "registered_sets"]


def registered_sets(cfg: CfgNode, split: str) -> list[str]:
    """The sets of DATASETS.TRAIN or TEST that are known here."""
    return [name for name in cfg.DATASETS[split] if name in DatasetCatalog.list()]


def read_images(cfg: CfgNode, splits: tuple[str, ...], count: int, what: str) -> list[dict]:
    """The first images of the first split that has a known set, as the test mapper gives them.

    Args:
        cfg: INPUT.*_TEST says how they are resized.
        splits: "TRAIN" or "TEST", in order of preference.
        count: of images, at most; they are taken evenly from the whole set.
        what: they are for, for the message.

    Raises:
        ConfigError: no set is known.
        DatasetError: a set or an image cannot be read.
    """
    for split in splits:
        names = registered_sets(cfg, split)
        if names:
            return _map(cfg, load_registered(split, names[0]), count)
    keys = " and ".join(f"DATASETS.{split} {tuple(cfg.DATASETS[split])}" for split in splits)
    raise ConfigError(
        f"no images to {what}: {keys} name no set that is known here. Put the run's config.yaml "
        "beside --config-file, or give the training's own config with --weights"
    )


def _map(cfg: CfgNode, records: list[dict[str, Any]], count: int) -> list[dict]:
    mapper = build_mapper(cfg, is_train=False)
    step = max(len(records) // max(count, 1), 1)
    return [mapper(record) for record in islice(records, 0, step * count, step)]
