# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Starting a student from its teacher's own weights, module by module."""

import logging
from collections.abc import Sequence

import torch
from tabulate import tabulate
from torch import nn

__all__ = ["init_from_teacher"]

logger = logging.getLogger(__name__)


@torch.no_grad()
def init_from_teacher(student: nn.Module, teacher: nn.Module, prefixes: Sequence[str]) -> list[str]:
    """Copy the teacher's weights into the student where names and shapes agree.

    Args:
        student, teacher: detectors.
        prefixes: beginnings of state_dict keys, e.g. "backbone.fpn" or "roi_heads"
            (DISTILL.STUDENT.INHERIT).

    Returns:
        The names of the tensors that were copied.

    Raises:
        ValueError: a prefix under which nothing could be copied.
    """
    ours, theirs = student.state_dict(), teacher.state_dict()
    copied, rows = [], []
    for prefix in prefixes:
        names = [name for name in ours if name.startswith(prefix)]
        fits = [n for n in names if n in theirs and theirs[n].shape == ours[n].shape]
        if not fits:
            raise ValueError(
                f"DISTILL.STUDENT.INHERIT: {prefix!r} begins {len(names)} of the student's tensors "
                "and none has its name and shape in the teacher: take it out"
            )
        for name in fits:
            ours[name].copy_(theirs[name])
        copied += fits
        rows.append((prefix, len(fits), ", ".join(n for n in names if n not in fits) or "-"))
    table = tabulate(rows, headers=["prefix", "tensors inherited", "kept, of another shape"])
    logger.info("The student inherits from its teacher:\n%s", table)
    return copied
