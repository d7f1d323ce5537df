# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The model inside DistributedDataParallel."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, or the model."""
    return model.module if isinstance(model, DistributedDataParallel) else model
