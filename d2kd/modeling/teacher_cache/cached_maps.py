# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The teacher's maps of a batch, made of the kept maps of its images.

Shape shorthand in this file:
    N: images; C, H, W: channels, height and width of a feature level
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...data.map_cache.image_digest import DIGEST_KEY, image_digest
from ...data.map_cache.stores import LevelMaps, MapStore
from ...utils.errors import ConfigError

__all__ = ["MapsByPart", "TeacherCache"]

# Part of a teacher ("features", "dense_logits") -> level name -> map.
MapsByPart = dict[str, LevelMaps]
# Called with a batch of one sample; returns maps (1, C, H, W).
RunTeacher = Callable[[list[dict]], MapsByPart]

# In the place of an image's digest: the teacher's answer to padding.
_PADDING = "padding"


class TeacherCache:
    """Runs the teacher once on every image, and gives what it answered from then on.

    Every image is run alone, whatever batch it is in: its values depend on nothing else. What is
    given is always the stored value, also in the step that computes it, so that a run with a full
    cache and one with an empty cache are equal bit for bit.

    Attributes:
        hits, misses: images that needed the teacher not, or needed it.
    """

    def __init__(
        self,
        store: MapStore,
        *,
        dtype: torch.dtype,
        device: torch.device,
        padding: Callable[[], dict],
    ):
        """
        Args:
            store: where the maps are kept, on the CPU.
            dtype: in which they are kept.
            device: on which the losses are computed.
            padding: makes a sample whose image is nothing but padding.
        """
        self.store = store
        self.dtype = dtype
        self.hits = self.misses = 0
        self._device = device
        self.padding_sample = padding
        self._computed: set[str] = set()
        self._most: int | None = None

    def expect(self, entries: int) -> None:
        """State how many different images there can be; ``fetch`` refuses to compute more."""
        self._most = entries

    @torch.no_grad()
    def fetch(self, batch: list[dict], parts: Sequence[str], run: RunTeacher) -> MapsByPart:
        """The maps of a batch, in float32.

        Where images differ in size, the cells beyond a smaller one hold the teacher's answer to
        padding.

        Args:
            batch: what the data loader gave.
            parts: to return.
            run: computes at least these parts.

        Returns:
            part -> level -> (N, C, H, W).
        """
        found = [self._of_sample(sample, parts, run) for sample in batch]
        maps: MapsByPart = {}
        for part in parts:
            levels = found[0][part]
            maps[part] = {x: self._join([f[part][x] for f in found]) for x in levels}
            if self._differ(found, part):
                self._fill_padding(maps[part], found, part, parts, run)
        return maps

    def fill(self, sample: dict, parts: Sequence[str], run: RunTeacher) -> bool:
        """Keep the maps of one sample; returns whether they had to be computed."""
        before = self.misses
        self._of_sample(sample, parts, run)
        return self.misses > before

    def _of_sample(self, sample: dict, parts: Sequence[str], run: RunTeacher) -> MapsByPart:
        digest = sample.get(DIGEST_KEY) or image_digest(sample["image"].cpu())
        found = {part: self.store.get(part, digest) for part in parts}
        absent = [part for part in parts if found[part] is None]
        if not absent:
            self.hits += 1
            return found
        self.misses += 1
        self._count(digest)
        return {**found, **self._compute(sample, digest, absent, run)}

    def _compute(
        self, sample: dict, digest: str, parts: Sequence[str], run: RunTeacher
    ) -> MapsByPart:
        """Run the teacher on one sample and keep these parts of what it gives."""
        computed, kept = run([sample]), {}
        for part in parts:
            kept[part] = {name: self._stored(x) for name, x in computed[part].items()}
            self.store.put(part, digest, kept[part])
        return kept

    def _stored(self, x: Tensor) -> Tensor:
        stored = x[0].to("cpu", self.dtype).contiguous()
        if not stored.isfinite().all():
            raise ConfigError(
                f"a map of the teacher is not finite in {self.dtype}: set "
                "DISTILL.TEACHER.CACHE_DTYPE to 'bfloat16' or 'float32'"
            )
        return stored

    def _count(self, digest: str) -> None:
        self._computed.add(digest)
        if self._most is not None and len(self._computed) > self._most:
            raise ConfigError(
                f"the training images have more variants than the {self._most} that INPUT makes "
                "of them, so DISTILL.TEACHER.CACHE would hardly ever be hit: set it to '', or make "
                "the mapper leave out random augmentation other than sizes and flips"
            )

    def _join(self, maps: list[Tensor]) -> Tensor:
        """(N, C, H, W) of maps (C, H, W); cells beyond a smaller map are not set yet."""
        height, width = (max(x.shape[i] for x in maps) for i in (1, 2))
        shape = (len(maps), len(maps[0]), height, width)
        on_cpu = self._device.type == "cpu"
        joined = torch.empty(shape, dtype=None if on_cpu else self.dtype, pin_memory=not on_cpu)
        for row, x in zip(joined, maps):
            row[:, : x.shape[1], : x.shape[2]] = x
        return joined if on_cpu else joined.to(self._device, non_blocking=True).float()

    @staticmethod
    def _differ(found: list[MapsByPart], part: str) -> bool:
        return any(
            x.shape != found[0][part][name].shape for f in found for name, x in f[part].items()
        )

    def _fill_padding(
        self,
        maps: LevelMaps,
        found: list[MapsByPart],
        part: str,
        parts: Sequence[str],
        run: RunTeacher,
    ) -> None:
        """Set the cells beyond each image to the teacher's answer in the midst of padding."""
        answer = self.store.get(part, _PADDING)
        if answer is None:
            answer = self._compute(self.padding_sample(), _PADDING, parts, run)[part]
        for name, joined in maps.items():
            height, width = answer[name].shape[1:]
            value = answer[name][:, height // 2, width // 2, None, None].to(joined)
            for row, f in zip(joined, found):
                high, wide = f[part][name].shape[1:]
                row[:, high:] = value
                row[:, :high, wide:] = value
