# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Batches in tensors and plain values, which weights_only loads, and back."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.structures import (
    BitMasks,
    Boxes,
    Instances,
    Keypoints,
    PolygonMasks,
    RotatedBoxes,
)
from torch import Tensor

__all__ = ["from_plain", "to_plain"]

_PLAIN = (Tensor, int, float, str, bool, type(None))


def _polygons(masks: PolygonMasks) -> list[list[Tensor]]:
    return [[torch.as_tensor(polygon) for polygon in parts] for parts in masks.polygons]


def _to_polygons(parts: list[list[Tensor]]) -> PolygonMasks:
    return PolygonMasks([[polygon.numpy() for polygon in polygons] for polygons in parts])


# Kind -> its content in tensors, and the kind made of them.
_KINDS: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    Boxes: (lambda x: x.tensor, Boxes),
    RotatedBoxes: (lambda x: x.tensor, RotatedBoxes),
    BitMasks: (lambda x: x.tensor, BitMasks),
    PolygonMasks: (_polygons, _to_polygons),
    Keypoints: (lambda x: x.tensor, Keypoints),
    Tensor: (lambda x: x, lambda x: x),
}
_NAMES = {kind.__name__: kind for kind in _KINDS}


def to_plain(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample of a batch in tensors and plain values; what has no such form is left out."""
    plain = {key: value for key, value in sample.items() if isinstance(value, _PLAIN)}
    # "instances", and "proposals" where they are read from a file.
    nested = {key: x for key, x in sample.items() if isinstance(x, Instances)}
    return {**plain, "nested": {key: _fields(x) for key, x in nested.items()}}


def _fields(instances: Instances) -> dict[str, Any]:
    fields = {}
    for name, value in instances.get_fields().items():
        for kind, (to_tensors, _) in _KINDS.items():
            if isinstance(value, kind):
                fields[name] = (kind.__name__, to_tensors(value))
    return {"image_size": list(instances.image_size), "fields": fields}


def from_plain(plain: dict[str, Any]) -> dict[str, Any]:
    """The sample that ``to_plain`` was given."""
    sample = {key: value for key, value in plain.items() if key != "nested"}
    for key, record in plain["nested"].items():
        instances = Instances(tuple(record["image_size"]))
        for name, (kind, tensors) in record["fields"].items():
            instances.set(name, _KINDS[_NAMES[kind]][1](tensors))
        sample[key] = instances
    return sample
