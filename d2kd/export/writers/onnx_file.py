# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""ONNX, with its own operators NonMaxSuppression and RoiAlign, by tracing.

PyTorch has two exporters. This is the older one (``dynamo=False``): it keeps batch, height and
width open, and takes seconds. The newer one (``dynamo=True``, tried with PyTorch 2.14) gives the
same detections at a fixed size, but takes ten times as long. Left open, height and width are fixed
in silence for GFL, and Faster R-CNN fails ("Cannot create Dim with inconsistent min=0, max=-128").
"""

import inspect
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.files import atomic_write
from ..graph.build import build_graph
from ..graph.suppression import keep_by_nms
from ..packages import need_package
from ..shape import InputShape

__all__ = ["INPUTS", "OPSET", "OUTPUTS", "write_onnx"]

# RoiAlign aligns half pixels since 16, Shape takes a part of a shape since 15.
OPSET = 17
INPUTS = ["images", "image_sizes"]
OUTPUTS = ["boxes", "scores", "classes", "masks"]
_ALL = 2**31 - 1
_LOWEST = float(torch.finfo(torch.float32).min)


class _OnnxNms(torch.autograd.Function):
    """``keep_by_nms``, which is recorded as ONNX's NonMaxSuppression."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, iou: float, score: float) -> Tensor:
        """Run it in PyTorch."""
        return keep_by_nms(boxes, scores, iou, score)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, iou: float, score: float) -> Any:
        """Write it: the rows (set, class, box) of what stays, scattered into a mask."""

        def constant(value: float) -> Any:
            return g.op("Constant", value_t=torch.tensor([value]))

        limits = constant(_ALL), constant(iou), constant(max(score, _LOWEST))
        rows = g.op("NonMaxSuppression", boxes, scores, *limits)
        none = g.op("Expand", constant(0), g.op("Shape", scores))
        ones = g.op("Expand", constant(1), g.op("Shape", rows, start_i=0, end_i=1))
        mask = g.op("Cast", g.op("ScatterND", none, rows, ones), to_i=9)
        mask.setType(scores.type().with_dtype(torch.bool))
        return mask


def write_onnx(
    model: nn.Module, path: Path, shape: InputShape, half: bool, metadata: dict[str, str]
) -> None:
    """Write a detector as ONNX; see ``write``."""
    onnx = need_package("onnx")
    graph = build_graph(model, _OnnxNms.apply, half)
    example = shape.example()
    with torch.no_grad():
        outputs = OUTPUTS[: len(graph(*example))]
    content = onnx.load_from_string(_record(graph, example, outputs, shape))
    onnx.helper.set_model_props(content, metadata)
    onnx.checker.check_model(content)
    with atomic_write(str(path), "wb") as file:
        file.write(content.SerializeToString())


def _record(
    graph: nn.Module, example: tuple[Tensor, Tensor], outputs: list[str], shape: InputShape
) -> bytes:
    batch = {} if shape.batch else {0: "batch"}
    size = {} if shape.size else {2: "height", 3: "width"}
    open_axes = dict.fromkeys((*INPUTS, *outputs), batch) | {"images": {**batch, **size}}
    content = io.BytesIO()
    # Releases before 2.5 have this exporter alone, and no argument that names it.
    named = "dynamo" in inspect.signature(torch.onnx.export).parameters
    with warnings.catch_warnings(), torch.no_grad():
        # Of sizes that are the same in every image, and of the exporter's age.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            example,
            content,
            input_names=INPUTS,
            output_names=outputs,
            dynamic_axes={name: axes for name, axes in open_axes.items() if axes},
            opset_version=OPSET,
            **({"dynamo": False} if named else {}),
        )
    return content.getvalue()
