# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The states of a process's random streams, in plain values that weights_only loads."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["get_random_state", "kept_random_state", "set_random_state"]


def get_random_state() -> dict[str, Any]:
    """States of Python's, NumPy's, PyTorch's and, if one is in use, the GPU's global streams."""
    numpy_state: Any = np.random.get_state()
    kind, keys, *rest = numpy_state
    state = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Let the global streams go on from where ``get_random_state`` was called.

    Args:
        state: what it returned, possibly from a file.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(state["cuda"]))


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Whatever is drawn inside, the streams outside go on as if it had not been."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)
