# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The device that a command runs on where the configured GPU is absent."""

import torch

__all__ = ["device_or_cpu"]


def device_or_cpu(device: str) -> tuple[str, str]:
    """Choose the CPU where there is no GPU.

    Training does not: it would take days instead of hours, so train_net.py refuses instead.

    Args:
        device: MODEL.DEVICE.

    Returns:
        The device to use, and a sentence for the user; the sentence is empty if nothing changed.
    """
    if torch.device(device).type != "cuda" or torch.cuda.is_available():
        return device, ""
    return "cpu", f"MODEL.DEVICE is {device} and there is no GPU: this runs on the CPU"
