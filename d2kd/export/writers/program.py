# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""PyTorch's ExportedProgram (``torch.export``), of fixed shape.

To load one, import this module first: it registers the operator that suppresses boxes.
"""

import json
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ...utils.errors import ConfigError
from ...utils.files import UNFINISHED
from ..graph.build import build_graph
from ..graph.suppression import keep_by_nms
from ..shape import InputShape
from .torchscript import METADATA

__all__ = ["write_program"]


def _define_operator() -> None:
    """Register ``torch.ops.d2kd.keep_by_nms``, which is recorded as one step of fixed shape."""
    library = torch.library.Library("d2kd", "DEF")
    arguments = "Tensor boxes, Tensor scores, float iou_threshold, float score_threshold"
    library.define(f"keep_by_nms({arguments}) -> Tensor")
    library.impl("keep_by_nms", keep_by_nms, "CPU")
    library.impl("keep_by_nms", _shape_of_result, "Meta")
    _LIBRARIES.append(library)


def _shape_of_result(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float
) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


# PyTorch forgets the operators of a library that nothing holds.
_LIBRARIES: list[torch.library.Library] = []
_define_operator()


class _PlainTuple(nn.Module):
    """A graph whose result is no named tuple: programs cannot be saved with classes of d2kd."""

    def __init__(self, graph: nn.Module):
        super().__init__()
        # Not "graph": the loaded program has an attribute of that name.
        self.detect = graph

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.detect(images, image_sizes))


def write_program(
    model: nn.Module, path: Path, shape: InputShape, half: bool, metadata: dict[str, str]
) -> None:
    """Write a detector as an ExportedProgram; see ``write``."""
    if not shape.batch or shape.size is None:
        raise ConfigError("a .pt2 has one shape: set --batch, e.g. to 1, and --size HEIGHT WIDTH")
    graph = _PlainTuple(build_graph(model, torch.ops.d2kd.keep_by_nms, half))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph, shape.example(), strict=False)
        unfinished = f"{path}{UNFINISHED}.pt2"
        torch.export.save(program, unfinished, extra_files={METADATA: json.dumps(metadata)})
    os.replace(unfinished, path)
