# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Detectron2's training loader, which can be asked where it stands and go on from there."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.data.common import DatasetFromList, ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader, IterableDataset

from ..utils.errors import ConfigError
from ..utils.rng_state import kept_random_state
from .map_cache.variants import check_variants
from .mapper import build_mapper
from .sample_stream import Mark, SampleStream, Start

__all__ = ["ResumableLoader", "build_train_loader", "make_resumable"]

# What Detectron2's samplers draw when they are built.
_DRAWN = ("_seed", "_seed_subset", "_indexes_subset")

logger = logging.getLogger(__name__)


class ResumableLoader:
    """The batches of Detectron2's own training loader, bit for bit, and a state to resume from.

    The alternative is to draw every image's augmentation from a seed of its own, made of the
    run's seed and the position. The state would be smaller, but no run would be equal to stock
    Detectron2's, nor could an earlier run be repeated. So the state holds the position of each
    data worker and each group of aspect ratios, and the random states from before those few
    samples. The samples are mapped again when a run is resumed.
    """

    def __init__(self, stream: SampleStream, *, batch_size: int, num_workers: int, grouped: bool):
        """
        Args:
            stream: of this process.
            batch_size: images of this process.
            num_workers: data workers of this process.
            grouped: whether wide and high images come in separate batches.
        """
        self.stream = stream
        self.batch_size = batch_size
        self.grouped = grouped
        # Detectron2 groups what single samples the data workers hand over.
        self._loader = _data_loader(stream, 1 if grouped else batch_size, batch_size, num_workers)
        self._layout = {
            "images": len(stream.dataset),
            "sampler": type(stream.sampler).__name__,
            "batch": batch_size,
            "data workers": num_workers,
            "processes": comm.get_world_size(),
            "chunk": stream.chunk,
            "grouped": grouped,
        }
        self._first = 0
        self._last: dict[int, Mark] = {}
        self._taken = 0
        self._batches = 0
        self._waiting: list[list[Any]] = [[], []]
        self._groups: list[list[Mark]] = [[], []]

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Nothing is read, and no data worker started, before the first batch is asked for."""
        resumed = self.stream.start is not None
        # The first batch of a new run draws the data workers' seed; that of a resumed one has it.
        with kept_random_state() if resumed else nullcontext():
            items = iter(self._loader)
            self._waiting = [self.stream.make_again(marks) for marks in self._groups]
        for item in items:
            self._taken += 1
            self._last[item[-1][0].worker] = item[-1][0]
            for batch in self._group(item):
                self._batches += 1
                yield batch

    def _group(self, item: list) -> Iterator[list[dict[str, Any]]]:
        if not self.grouped:
            yield [sample for _, sample in item]
            return
        ((mark, sample),) = item
        i = 0 if sample["width"] > sample["height"] else 1
        self._groups[i].append(mark)
        self._waiting[i].append(sample)
        if len(self._waiting[i]) == self.batch_size:
            batch = self._waiting[i]
            self._groups[i], self._waiting[i] = [], []
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """After the batch that was given last; plain values and tensors."""
        sampler = vars(self.stream.sampler)
        return {
            "layout": dict(self._layout),
            "sampler": {key: sampler[key] for key in _DRAWN if key in sampler},
            "first": self._first,
            "batches": self._batches,
            "taken": self._taken,
            "last": {worker: tuple(mark) for worker, mark in self._last.items()},
            "groups": [[tuple(mark) for mark in marks] for marks in self._groups],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch that ``state_dict`` was asked after.

        Where the set-up has changed meanwhile that is impossible: a warning says what has, and the
        images go on at the same place of their order, or, if that is another one, from its start.

        Args:
            state: what ``state_dict`` gave, possibly from a file.
        """
        old, new = state["layout"], self._layout
        changed = [f"{k}: {old[k]}, now {new[k]}" for k in new if old[k] != new[k]]
        if changed:
            logger.warning(
                "The data go on, but not exactly as they would have without the break (%s)",
                "; ".join(changed),
            )
        if any(old[key] != new[key] for key in ("images", "sampler")):
            return
        vars(self.stream.sampler).update(state["sampler"])
        if changed:
            seen = state["batches"] * old["batch"] * old["processes"]
            self._first = seen // new["processes"]
            self._batches = self._first // new["batch"]
            self.stream.start = Start({}, first=self._first)
            return
        self._first = state["first"]
        self._batches, self._taken = state["batches"], state["taken"]
        self._last = {worker: Mark(*mark) for worker, mark in state["last"].items()}
        self._groups = [[Mark(*mark) for mark in marks] for marks in state["groups"]]
        turn = self._taken % max(1, new["data workers"])
        seeds = [mark.seed for mark in self._last.values()]
        self.stream.start = Start(self._last, turn, seeds[0] if seeds else None, self._first)


def _data_loader(
    stream: SampleStream, item_size: int, batch_size: int, num_workers: int
) -> DataLoader:
    """Items of ``item_size`` samples each, made by data workers two batches ahead."""
    # How many items two batches are.
    ahead = 2 * batch_size // item_size
    return DataLoader(
        stream,
        batch_size=item_size,
        drop_last=True,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator,
        worker_init_fn=worker_init_reset_seed,
        # PyTorch's two a worker would be two images here, and each step wait for the others.
        prefetch_factor=max(2, -(-ahead // num_workers)) if num_workers else None,
    )


def build_train_loader(
    cfg: CfgNode, mapper: Callable[[dict], dict | None] | None = None
) -> Iterable[list[dict[str, Any]]]:
    """Detectron2's loader of a config: errors name the image, and it can be resumed exactly.

    A training set of its own that is an IterableDataset knows no position: it is left to
    Detectron2.

    Args:
        cfg: of the training.
        mapper: of one's own, record -> sample, in the place of Detectron2's. It is resumed exactly
            if it draws from the global random streams of Python, NumPy or PyTorch, and keeps
            nothing from one call to the next.

    Raises:
        ConfigError: there is no training set, the processes cannot share a batch equally, or the
            mapper makes more variants of an image than DISTILL.TEACHER.CACHE can keep.
    """
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty: set it to the sets to train on")
    parts = build_detection_train_loader.from_config(cfg, mapper=build_mapper(cfg, True, mapper))
    dataset, sampler = parts["dataset"], parts["sampler"]
    if isinstance(dataset, IterableDataset) or sampler is None:
        return build_detection_train_loader(**parts)
    if mapper and cfg.DISTILL.ENABLED and cfg.DISTILL.TEACHER.CACHE:
        check_variants(cfg, dataset, parts["mapper"])
    return make_resumable(
        dataset,
        parts["mapper"],
        sampler,
        total_batch_size=parts["total_batch_size"],
        grouped=parts["aspect_ratio_grouping"],
        num_workers=parts["num_workers"],
    )


def make_resumable(
    dataset: Any,
    mapper: Callable[[dict], dict | None],
    sampler: Iterable[int],
    *,
    total_batch_size: int,
    grouped: bool,
    num_workers: int,
) -> ResumableLoader:
    """Detectron2's loader of these parts, which can be resumed.

    Args:
        dataset: list or map-style data set of records.
        mapper: record -> sample.
        sampler: endless.
        total_batch_size: images of all processes together.
        grouped: whether wide and high images come in separate batches.
        num_workers: data workers of this process.

    Raises:
        ConfigError: the processes cannot share a batch equally.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    batch_size, rest = divmod(total_batch_size, comm.get_world_size())
    if rest:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {total_batch_size}: set it to a multiple of the "
            f"{comm.get_world_size()} processes"
        )
    # Data workers of Detectron2's main take a batch in turn, those of 0.6 an image.
    chunked = "shard_chunk_size" in inspect.signature(ToIterableDataset).parameters
    stream = SampleStream(dataset, mapper, sampler, batch_size if chunked else 1)
    return ResumableLoader(stream, batch_size=batch_size, num_workers=num_workers, grouped=grouped)
