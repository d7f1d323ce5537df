# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Two spellings of one value are one value."""

import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["normalize", "same_value"]


def normalize(value: Any) -> Any:
    """Turn tuples into lists at every depth: yaml does not tell one from the other."""
    if isinstance(value, (list, tuple)):
        return [normalize(x) for x in value]
    if isinstance(value, Mapping):
        return {key: normalize(x) for key, x in value.items()}
    return value


def same_value(key: str, one: Any, other: Any) -> bool:
    """Do two values of a key mean the same?

    Lists and tuples, 1 and 1.0 are equal; True is not 1. Sizes and ratios of anchors may be
    given flat or for each level, and once for all levels, as Detectron2's anchor generator reads
    them. They count as equal to five digits: a detector holds them in single precision.

    Args:
        key: dotted.
        one, other: values of it.
    """
    read = _READ_AS.get(key, normalize)
    return _equal(read(one), read(other), 1e-5 if read is _per_level else 0.0)


def _equal(one: Any, other: Any, tolerance: float = 0.0) -> bool:
    """tolerance: relative, of numbers."""
    if isinstance(one, list) and isinstance(other, list):
        pairs = zip(one, other)
        return len(one) == len(other) and all(_equal(a, b, tolerance) for a, b in pairs)
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if tolerance and isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=tolerance)
    return one == other


def _per_level(value: Any) -> Any:
    """A list for each level; one alone where all levels have the same."""
    value = normalize(value)
    if not isinstance(value, list) or not value:
        return value
    if not isinstance(value[0], list):
        value = [value]
    return value[:1] if all(_equal(level, value[0]) for level in value) else value


def _one_or_more(value: Any) -> Any:
    """A number is a list of one: INPUT.MIN_SIZE_TRAIN."""
    value = normalize(value)
    return value if isinstance(value, list) else [value]


_READ_AS: dict[str, Callable[[Any], Any]] = {
    "MODEL.ANCHOR_GENERATOR.SIZES": _per_level,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _per_level,
    "MODEL.ANCHOR_GENERATOR.ANGLES": _per_level,
    "INPUT.MIN_SIZE_TRAIN": _one_or_more,
}
