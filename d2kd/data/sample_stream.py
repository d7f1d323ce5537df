# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The samples of a sampler's order from any position on, as if all before had been drawn."""

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from random import Random
from typing import Any, NamedTuple

from detectron2.utils.env import seed_all_rng
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..utils.errors import DatasetError
from ..utils.rng_state import get_random_state, set_random_state

__all__ = ["Mark", "SampleStream", "Start"]


class Mark(NamedTuple):
    """Where a sample stands, and what it takes to make it again."""

    # In the order of this process's sampler, from 0.
    position: int
    # The random streams just before it was mapped.
    random: dict[str, Any]
    # The data worker that made it, counted as when the run was new; and what all were seeded by.
    worker: int = 0
    seed: int = 0


class Start(NamedTuple):
    """From where on a stream goes: the last samples that the run before had taken."""

    # The last of each data worker; a worker that is not among them has given none.
    last: dict[int, Mark]
    # The data worker whose turn it was, and what all were seeded by.
    turn: int = 0
    seed: int | None = None
    # All positions before are left out.
    first: int = 0


class SampleStream(IterableDataset):
    """Map a data set's records in the sampler's order, shared among data workers as by Detectron2.

    Each worker draws its augmentation from random streams of its own, which therefore depend on
    all that it has mapped. So a sample carries their state from before it was made. A worker
    that continues another one maps that one's last sample again, which restores its random
    streams.
    """

    def __init__(self, dataset: Dataset, mapper: Callable, sampler: Iterable[int], chunk: int):
        """
        Args:
            dataset: records.
            mapper: record -> sample, or None for one that is to be left out; another takes its
                place, which depends on the position alone.
            sampler: endless, the same in every data worker.
            chunk: positions in a row that are one data worker's.
        """
        self.dataset = dataset
        self.mapper = PicklableWrapper(mapper)
        self.sampler = sampler
        self.chunk = chunk
        self.start: Start | None = None

    def __iter__(self) -> Iterator[tuple[Mark, Any]]:
        info = get_worker_info()
        if info is None:
            yield from self._in_this_process()
            return
        worker, seed = info.id, info.seed - info.id
        begin, last = 0, None
        if self.start is not None:
            worker = (worker + self.start.turn) % info.num_workers
            begin, last = self.start.first, self.start.last.get(worker)
            seed = self._go_on(worker, seed, last)
        for position, index in islice(enumerate(self.sampler), begin, None):
            if position // self.chunk % info.num_workers != worker:
                continue
            if last is None or position > last.position:
                mark = Mark(position, get_random_state(), worker, seed)
                yield mark, self.make(position, index)
            elif position == last.position:
                self.make(position, index)

    def _in_this_process(self) -> Iterator[tuple[Mark, Any]]:
        """The random streams are the training's own, which are restored as a whole."""
        begin = 0
        if self.start is not None:
            begin = self.start.first
            if self.start.last:
                begin = self.start.last[0].position + 1
        for position, index in islice(enumerate(self.sampler), begin, None):
            state = get_random_state()
            yield Mark(position, state), self.make(position, index)

    def _go_on(self, worker: int, seed: int, last: Mark | None) -> int:
        """Take over the random streams of the worker of this number; returns all workers' seed."""
        if last is not None:
            set_random_state(last.random)
            return last.seed
        if self.start.seed is None:
            return seed
        # What PyTorch and Detectron2 seed a new worker by.
        seed_all_rng((self.start.seed + worker) % 2**31 + worker)
        return self.start.seed

    def make(self, position: int, index: int) -> Any:
        """The sample of a position, whose record has this index.

        Raises:
            DatasetError: the mapper leaves out every record there is.
        """
        sample = self.mapper(self.dataset[index])
        if sample is None:
            for other in Random(position).sample(range(len(self.dataset)), len(self.dataset)):
                sample = self.mapper(self.dataset[other])
                if sample is not None:
                    return sample
            raise DatasetError("no image of the training set can be used: all are skipped")
        return sample

    def make_again(self, marks: list[Mark]) -> list[Any]:
        """The samples of earlier positions, as they were; leaves the random streams elsewhere."""
        wanted = {mark.position for mark in marks}
        indices: dict[int, int] = {}
        order = iter(self.sampler)
        for position in count():
            if len(indices) == len(wanted):
                break
            index = next(order)
            if position in wanted:
                indices[position] = index
        samples = []
        for mark in marks:
            set_random_state(mark.random)
            samples.append(self.make(mark.position, indices[mark.position]))
        return samples
