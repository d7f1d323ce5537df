# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""TorchScript, by tracing; it needs PyTorch and torchvision to run."""

import json
import os
import warnings
from pathlib import Path

import torch
from torch import nn

from ...utils.errors import ConfigError
from ...utils.files import UNFINISHED
from ..graph.build import build_graph
from ..graph.suppression import keep_by_nms
from ..shape import InputShape

__all__ = ["METADATA", "write_torchscript"]

# The file within the archive that holds the metadata.
METADATA = "metadata.json"


def write_torchscript(
    model: nn.Module, path: Path, shape: InputShape, half: bool, metadata: dict[str, str]
) -> None:
    """Write a detector as TorchScript; see ``write``."""
    if shape != InputShape():
        raise ConfigError(
            "--batch and --size fix the shape of .onnx and .pt2; a .ts takes every shape: leave "
            "them out"
        )
    with warnings.catch_warnings(), torch.no_grad():
        # Of sizes that are the same in every image, and of TorchScript's age.
        warnings.simplefilter("ignore")
        graph = build_graph(model, torch.jit.script(keep_by_nms), half)
        traced = torch.jit.trace(graph, shape.example(), check_trace=False)
        unfinished = f"{path}{UNFINISHED}"
        torch.jit.save(traced, unfinished, _extra_files={METADATA: json.dumps(metadata)})
    os.replace(unfinished, path)
