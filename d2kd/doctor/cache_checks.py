# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Whether the teacher's cache can hold the training set, and whether it pays."""

import time

import torch
from detectron2.config import CfgNode

from ..data.train_records import load_train_records
from ..engine.prepare_cache import measure_cache
from ..modeling import Distiller
from ..modeling.paired_forward.cached_parts import cached_parts
from ..modeling.teacher_cache.size import CacheSize, check_fits
from ..utils.errors import ConfigError
from .finding import Finding, error, ok, warning

__all__ = ["check_cache"]

# An image that is not in the cache takes this much longer, as it is run alone.
WORTHWHILE = 0.15


def check_cache(cfg: CfgNode, model: Distiller) -> Finding:
    """Variants, bytes, time to fill and expected hits of the cache that a training would use."""
    cache = model.teacher.cache
    size = measure_cache(cfg, model, load_train_records(cfg))
    solver = cfg.SOLVER
    samples = solver.MAX_ITER * solver.ACCUMULATE_STEPS * solver.IMS_PER_BATCH
    rate = size.hit_rate(samples)
    text = (
        f"{size.describe()} of at most {cache.store.limit / 2**30:.2f}; filling takes about "
        f"{_fill_seconds(model, size) / 60:.1f} min of one process; {100 * rate:.0f}% of the "
        "schedule's images need no teacher, from an empty cache on"
    )
    try:
        check_fits(cfg, size, cache.store.limit)
    except ConfigError as problem:
        return error("cache", str(problem))
    if rate < WORTHWHILE:
        return warning("cache", text, "it does not pay: set DISTILL.TEACHER.CACHE to ''")
    return ok("cache", text + ": it pays")


@torch.no_grad()
def _fill_seconds(model: Distiller, size: CacheSize) -> float:
    """Of one process, from the time of one image."""
    parts, run = cached_parts(model.forward_pair, model.teacher, model.required)
    sample = model.teacher.cache.padding_sample()
    begun = time.perf_counter()
    maps = run([sample])
    seconds = time.perf_counter() - begun
    values = sum(x.numel() for part in parts for x in maps[part].values())
    each = values * torch.empty(0, dtype=model.teacher.cache.dtype).element_size()
    return seconds * size.total / max(1, each)
