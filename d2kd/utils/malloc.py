# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""glibc malloc settings that keep freed memory in the process."""

import ctypes

import torch

__all__ = ["keep_freed_memory"]

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory(device: str) -> bool:
    """Let this process keep what it frees: the next step will ask for as much.

    glibc returns large blocks to the system as soon as they are free and gets them back page by
    page. A step with a teacher holds more at once than one without and crosses its thresholds
    more often: that alone cost a tenth of a distilled step on a CPU. No value changes.

    Args:
        device: MODEL.DEVICE; GPUs have PyTorch's own allocator, which already does this.

    Returns:
        Whether it was done: on a CPU, where the C library is glibc or understands its calls.
    """
    if torch.device(device).type != "cpu":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
