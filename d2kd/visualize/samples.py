# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Training images to look at: drawn by a seed, augmented as the training augments them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ..data import build_mapper
from ..data.train_records import load_train_records
from ..utils.errors import DatasetError

__all__ = ["draw_samples"]


def draw_samples(cfg: CfgNode, count: int, seed: int) -> list[dict[str, Any]]:
    """Different images that have a box after the augmentation; fewer where there are fewer.

    Args:
        cfg: DATASETS.TRAIN, INPUT; its sets need not be registered yet.
        count: of images.
        seed: of their choice. The augmentation draws from the process's streams.

    Raises:
        DatasetError: no image has a box.
    """
    found: list[dict[str, Any]] = []
    for sample in _samples(cfg, seed):
        found.append(sample)
        if len(found) == count:
            break
    if not found:
        raise DatasetError(
            f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no image with a box: there is nothing "
            "to draw. Set it to a set with annotations"
        )
    return found


def _samples(cfg: CfgNode, seed: int) -> Iterator[dict[str, Any]]:
    records = load_train_records(cfg)
    mapper = build_mapper(cfg, True)
    for i in np.random.default_rng(seed).permutation(len(records)):
        if not records[i].get("annotations"):
            continue
        sample = mapper(records[i])
        # Cropping may have cut every box off; None: the file cannot be read (BAD_IMAGES).
        if sample is not None and len(sample["instances"]):
            yield sample
