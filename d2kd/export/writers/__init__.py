# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""One writer for each file format; ``write`` chooses by the ending of the name."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from ...utils.errors import ConfigError
from ..shape import InputShape
from .onnx_file import write_onnx
from .program import write_program
from .torchscript import write_torchscript

__all__ = ["WRITERS", "write"]

# Ending -> what writes (detector, path, shape, half, metadata).
WRITERS: dict[str, Callable] = {
    ".onnx": write_onnx,
    ".ts": write_torchscript,
    ".pt2": write_program,
}


def write(
    model: nn.Module, path: Path, shape: InputShape, half: bool, metadata: dict[str, str]
) -> None:
    """Write a detector into a file that holds decoding and suppression too.

    Args:
        model: passed ``check_exportable``; it is not changed.
        path: its ending chooses the format.
        shape: of the input.
        half: the networks compute in float16.
        metadata: written into the file.

    Raises:
        ConfigError: there is no such format, it needs another shape, or a package is missing.
    """
    if path.suffix not in WRITERS:
        raise ConfigError(f"--output {path}: its name must end in one of {list(WRITERS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.suffix](model, path, shape, half, metadata)
