# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Initialises a student with weights of its teacher."""

import logging
from collections.abc import Sequence

import torch
from tabulate import tabulate
from torch import nn

from ..utils.errors import PairMismatchError

__all__ = ["init_from_teacher"]

logger = logging.getLogger(__name__)


@torch.no_grad()
def init_from_teacher(student: nn.Module, teacher: nn.Module, prefixes: Sequence[str]) -> list[str]:
    """Copy the teacher's tensors into the student where name and shape are the same.

    Args:
        student, teacher: detectors; the student is changed in place.
        prefixes: of state_dict keys, for example "backbone.fpn" or "roi_heads"
            (DISTILL.STUDENT.INHERIT).

    Returns:
        The names of the copied tensors.

    Raises:
        PairMismatchError: nothing can be copied under one of the prefixes.
    """
    ours, theirs = student.state_dict(), teacher.state_dict()
    copied, rows = [], []
    for prefix in prefixes:
        names = [name for name in ours if name.startswith(prefix)]
        fits = [n for n in names if n in theirs and theirs[n].shape == ours[n].shape]
        if not fits:
            raise PairMismatchError(
                f"DISTILL.STUDENT.INHERIT: {len(names)} tensors of the student begin with "
                f"{prefix!r}, and the teacher has none of the same name and shape: take it out"
            )
        for name in fits:
            ours[name].copy_(theirs[name])
        copied += fits
        rows.append((prefix, len(fits), ", ".join(n for n in names if n not in fits) or "-"))
    table = tabulate(rows, headers=["prefix", "tensors copied", "not copied: other shape"])
    logger.info("Weights of the teacher copied into the student:\n%s", table)
    return copied
