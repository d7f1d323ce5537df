# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""When a student draws its training images (VIS_PERIOD), as its own forward would."""

from detectron2.utils.events import get_event_storage
from torch import nn

__all__ = ["is_visualized"]


def is_visualized(student: nn.Module) -> bool:
    """Is this iteration one of those whose images the student draws?

    A detector without ``vis_period`` draws none: Detectron2's FCOS, and GFL.
    """
    period = getattr(student, "vis_period", 0)
    return period > 0 and get_event_storage().iter % period == 0
