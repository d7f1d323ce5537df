# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a distiller's paired forward takes from a teacher cache, image by image."""

from collections.abc import Callable, Sequence

from ..teacher import FrozenTeacher
from ..teacher_cache.cached_maps import MapsByPart
from . import dense, rcnn
from .registry import PairForward, RequiredOutputs

__all__ = ["cached_parts"]


def cached_parts(
    forward_pair: PairForward, teacher: FrozenTeacher, required: RequiredOutputs
) -> tuple[Sequence[str], Callable[[list[dict]], MapsByPart]]:
    """The parts that a training step will ask the cache for, and what computes them.

    A paired forward of one's own takes the features alone.
    """
    if forward_pair is dense.forward_pair_dense:
        parts, run_heads = dense.teacher_parts(teacher, required)
    elif forward_pair is rcnn.forward_pair_rcnn:
        parts, run_heads = rcnn.teacher_parts(teacher, required)
    else:
        parts, run_heads = ["features"], lambda features: {"features": features}
    return parts, lambda batch: run_heads(teacher.run_backbone(batch))
