# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How large a cache will be, before anything is put into it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from detectron2.config import CfgNode

from ...data.map_cache.variants import network_size, variants_of
from ...utils.errors import ConfigError

__all__ = ["CacheSize", "check_fits", "estimate_size"]

_GIB = 2**30


@dataclass(frozen=True)
class CacheSize:
    """What a cache will hold once every image was seen in every variant.

    Attributes:
        images: of the training sets.
        variants: sizes and flips of an image.
        total: bytes.
    """

    images: int
    variants: int
    total: int

    @property
    def entries(self) -> int:
        return self.images * self.variants

    def describe(self) -> str:
        """Such as "900 images x 2 variants x 0.27 MB = 0.45 GiB"."""
        each = self.total / max(1, self.entries) / 1e6
        return (
            f"{self.images} images x {self.variants} variants x {each:.2f} MB = "
            f"{self.total / _GIB:.2f} GiB"
        )

    def hit_rate(self, samples: int) -> float:
        """The expected share of samples that need no teacher, from an empty cache on.

        Args:
            samples: training images of the whole schedule, each drawn with a random variant.
        """
        seen = self.entries * (1 - (1 - 1 / self.variants) ** (samples / max(1, self.images)))
        return max(0.0, 1 - min(seen, samples) / max(1, samples))


def estimate_size(
    cfg: CfgNode, records: Iterable[dict], bytes_per_pixel: float, multiple: int
) -> CacheSize:
    """The size of a full cache, to a few per cent.

    Args:
        cfg: the student's, whose INPUT makes the variants.
        records: of the training sets; those without "height" and "width" count as the others' mean.
        bytes_per_pixel: of the padded image, all maps together.
        multiple: to which sides are padded.
    """
    sizes = Counter((x.get("height"), x.get("width")) for x in records)
    images, known = sum(sizes.values()), 0
    variants, pixels = list(variants_of(cfg)), 0
    for (height, width), number in sizes.items():
        if height and width:
            known += number
            for variant in variants:
                sides = network_size(height, width, variant.min_size, cfg.INPUT.MAX_SIZE_TRAIN)
                high, wide = (-(-side // multiple) * multiple for side in sides)
                pixels += number * high * wide
    total = bytes_per_pixel * pixels * images / max(1, known)
    return CacheSize(images, len(variants), int(total))


def check_fits(cfg: CfgNode, size: CacheSize, limit: int) -> None:
    """Refuse a cache that will not hold all images.

    Raises:
        ConfigError: names the estimate and the limit.
    """
    if size.total <= limit:
        return
    node = cfg.DISTILL.TEACHER
    kind = f"DISTILL.TEACHER.CACHE_GIB {node.CACHE_GIB}" if node.CACHE_GIB else "half of the free"
    raise ConfigError(
        f"DISTILL.TEACHER.CACHE {node.CACHE!r} needs {size.describe()} and may take "
        f"{limit / _GIB:.2f} GiB ({kind}): raise CACHE_GIB, choose fewer sizes in "
        "INPUT.MIN_SIZE_TRAIN, a folder on a larger disk, or set CACHE to ''"
    )
