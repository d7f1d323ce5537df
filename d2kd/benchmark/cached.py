# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A distilled step with a teacher cache: full, and empty."""

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ..data.map_cache.image_digest import DIGEST_KEY, image_digest
from ..data.map_cache.stores import nbytes
from ..engine.trial_step import TrialStep
from ..modeling import Distiller
from ..modeling.paired_forward.cached_parts import cached_parts
from ..utils.timing import Sample
from .networks import Pair
from .tasks import Task, train_step

__all__ = [
    "bytes_per_image",
    "cached_tasks",
    "summarise_cache",
    "temporary_cache",
    "with_digests",
]


@contextmanager
def temporary_cache(where: str) -> Iterator[str]:
    """ "memory" as it is, or an empty folder in ``where`` that is removed again."""
    if where in ("", "memory"):
        yield where
        return
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield folder


def with_digests(batches: list[list[dict]]) -> list[list[dict]]:
    """The batches as the data workers of a run with a cache give them."""
    return [[{**x, DIGEST_KEY: image_digest(x["image"])} for x in batch] for batch in batches]


def cached_tasks(pair: Pair, batches: list[list[dict]], cache: str) -> dict[str, Task]:
    """The steps "warm", whose images are in the cache after the warm-up, and "cold"."""
    names = list(pair.losses)
    model = pair.distiller(names, cache)
    numbers = itertools.count()

    def cold(turn: int) -> None:
        batch = batches[turn % len(batches)]
        step([{**x, DIGEST_KEY: f"{next(numbers):08d}"} for x in batch])

    step = TrialStep(pair.cfg, pair.distiller(names, cache))
    return {"warm": train_step(pair.cfg, model, with_digests(batches)), "cold": cold}


def bytes_per_image(model: Distiller, batch: list[dict]) -> float:
    """The mean bytes that the cache keeps of an image of this batch."""
    parts, run = cached_parts(model.forward_pair, model.teacher, model.required)
    cache, total = model.teacher.cache, 0
    for sample in batch:
        digest = image_digest(sample["image"])
        cache.fill(sample, parts, run)
        total += sum(nbytes(cache.store.get(part, digest)) for part in parts)
    return total / len(batch)


def summarise_cache(times: dict[str, Sample]) -> dict:
    """Each kind of distilled step over the baseline step, the median and spread over the rounds."""
    kinds = {"off": "distilled all", "cold": "cold", "warm": "warm"}
    found: dict[str, dict] = {}
    for kind, name in kinds.items():
        pairs = zip(times[name].values, times["student"].values)
        ratio = Sample(tuple(step / plain for step, plain in pairs))
        found[kind] = {
            "step_s": times[name].median,
            "over_baseline": round(ratio.median, 4),
            "iqr": round(ratio.iqr, 4),
        }
    return found
