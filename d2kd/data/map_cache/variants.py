# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How many images a config's augmentation makes of one, each of which a cache must hold."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ...utils.errors import ConfigError
from ...utils.rng_state import kept_random_state
from .image_digest import image_digest

__all__ = ["Variant", "check_variants", "count_variants", "network_size", "variants_of"]

# Records of which a mapper's variants are counted.
_TRIED = 2


class Variant(NamedTuple):
    """One outcome of Detectron2's augmentation.

    Attributes:
        min_size: length of the shorter side in pixels; 0 does not resize.
        flipped: as INPUT.RANDOM_FLIP says.
    """

    min_size: int
    flipped: bool

    def augmentations(self, cfg: CfgNode) -> list[T.Augmentation]:
        """Detectron2's augmentations of this outcome alone, which draw nothing that matters."""
        done = [T.ResizeShortestEdge([self.min_size], cfg.INPUT.MAX_SIZE_TRAIN, "choice")]
        if self.flipped:
            way = cfg.INPUT.RANDOM_FLIP
            flip = {"horizontal": way == "horizontal", "vertical": way == "vertical"}
            done.append(T.RandomFlip(prob=1.0, **flip))
        return done


def variants_of(cfg: CfgNode) -> Iterator[Variant]:
    """Every outcome of the config's augmentation, without crops, of which there is no end."""
    sizes: Sequence[int] = sorted(set(cfg.INPUT.MIN_SIZE_TRAIN))
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        sizes = range(sizes[0], sizes[-1] + 1)
    flips = (False,) if cfg.INPUT.RANDOM_FLIP == "none" else (False, True)
    for size in sizes:
        for flipped in flips:
            yield Variant(size, flipped)


def count_variants(cfg: CfgNode) -> int:
    """The number of outcomes of the config's augmentation."""
    return sum(1 for _ in variants_of(cfg))


def check_variants(cfg: CfgNode, records: Sequence[dict[str, Any]], mapper: Callable) -> None:
    """A mapper of one's own makes no more variants of an image than INPUT describes.

    The first records are mapped a few times more often than there are variants. The random streams
    stay where they were.

    Raises:
        ConfigError: it makes more; says how many were counted.
    """
    most = count_variants(cfg)
    for i in range(min(_TRIED, len(records))):
        with kept_random_state():
            samples = [mapper(records[i]) for _ in range(2 * most + 2)]
        found = len({image_digest(sample["image"]) for sample in samples if sample})
        if found > most:
            raise ConfigError(
                f"the mapper made {found} different images of one in {len(samples)} calls, and "
                f"INPUT describes {most}, so DISTILL.TEACHER.CACHE would hardly ever be hit: set "
                "it to '', or leave out random augmentation other than the sizes and flips of INPUT"
            )


def network_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width of an image after resizing, to a pixel."""
    if not min_size:
        return height, width
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return round(height * scale), round(width * scale)
