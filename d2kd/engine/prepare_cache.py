# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What is done about a teacher cache between building a training and starting it."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..data.resumable_loader import ResumableLoader
from ..modeling import Distiller
from ..modeling.paired_forward.cached_parts import cached_parts
from ..modeling.teacher_cache.size import CacheSize, check_fits, estimate_size

__all__ = ["measure_cache", "prepare_cache", "prepare_cache_for"]

logger = logging.getLogger(__name__)


def prepare_cache_for(cfg: CfgNode, model: nn.Module, loader: Any) -> None:
    """``prepare_cache`` for the images of a training loader; nothing where nothing is distilled."""
    if isinstance(model, Distiller):
        known = isinstance(loader, ResumableLoader)
        prepare_cache(cfg, model, loader.stream.dataset if known else None)


def prepare_cache(cfg: CfgNode, model: Distiller, records: Iterable[dict] | None) -> None:
    """Estimate the cache's size, and tell the cache how many images to expect.

    Args:
        records: of the training sets; None if they are not known in advance.

    Raises:
        ConfigError: it cannot hold all images.
    """
    cache = model.teacher.cache
    if cache is None:
        return
    if records is None:
        logger.warning("The training set has no length: the teacher's cache may not hold it")
        return
    size = measure_cache(cfg, model, records)
    check_fits(cfg, size, cache.store.limit)
    cache.expect(size.entries)
    logger.info("The teacher's cache will hold %s", size.describe())


@torch.no_grad()
def measure_cache(cfg: CfgNode, model: Distiller, records: Iterable[dict]) -> CacheSize:
    """The size of a full cache, of one run of the teacher on an empty image."""
    teacher = model.teacher
    parts, run = cached_parts(model.forward_pair, teacher, model.required)
    sample = teacher.cache.padding_sample()
    maps = run([sample])
    values = sum(x.numel() for part in parts for x in maps[part].values())
    pixels = sample["image"][0].numel()
    per_pixel = values * torch.empty(0, dtype=teacher.cache.dtype).element_size() / pixels
    multiple = max(1, teacher.model.backbone.size_divisibility)
    return estimate_size(cfg, records, per_pixel, multiple)
