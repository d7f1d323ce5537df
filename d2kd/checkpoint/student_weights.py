# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The student at the start of a run, and at one of its checkpoints, outside of a training."""

from detectron2.config import CfgNode
from torch import nn

from ..utils.errors import WeightsError
from ..utils.text import first_few
from .safe_load import safe_load
from .start import check_start
from .weights import Loaded, load_weights, read_weights, resolve_weights

__all__ = ["load_student_at", "load_student_start"]


def load_student_start(cfg: CfgNode, student: nn.Module) -> Loaded | None:
    """Load MODEL.WEIGHTS into the student, as training does.

    Returns:
        How the file fitted; None if MODEL.WEIGHTS is empty.

    Raises:
        UnreachableError: it cannot be downloaded.
        WeightsError: it cannot be read, or holds too little of the student.
    """
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        return None
    path = resolve_weights(weights, "MODEL.WEIGHTS")
    with read_weights("MODEL.WEIGHTS", weights):
        loaded = load_weights(student, path)
    check_start(cfg, loaded)
    return loaded


def load_student_at(weights: str, student: nn.Module, losses: nn.Module) -> bool:
    """Load a checkpoint of a run, with its adapters, into student and losses.

    Args:
        weights: what ``--weights`` names.
        losses: the distillation losses, which hold the adapters.

    Returns:
        Whether the file holds adapters.

    Raises:
        WeightsError: it cannot be read, or lacks a tensor of the student.
    """
    path = resolve_weights(weights, "--weights")
    with read_weights("--weights", weights):
        loaded = load_weights(student, path)
        adapters = safe_load(path).get("distill_losses")
        if loaded.missing or loaded.wrong_shape:
            lacking = [*loaded.missing, *loaded.wrong_shape]
            text = f"{len(lacking)} of the student's tensors: {first_few(lacking)}"
            raise WeightsError(f"it lacks {text}. Choose a checkpoint of this config's run")
        if adapters is not None:
            losses.load_state_dict(adapters)
    return adapters is not None
