# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Int8 weights and activations for ONNX, by onnxruntime's static quantization."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .packages import need_package
from .shape import InputShape, stack_images

__all__ = ["quantize"]

# What predicts scores and boxes stays in float32: one scale would have to serve both the few
# values that matter and the many that do not.
_PREDICTIONS = (
    "cls_score",
    "bbox_pred",
    "ctrness",
    "objectness_logits",
    "anchor_deltas",
    "predictor",
)


def quantize(source: Path, target: Path, images: Sequence[Tensor], shape: InputShape) -> None:
    """Quantize the convolutions and linear layers of an ONNX file.

    Args:
        source: in float32.
        target: is written, and beside it a file that is removed again.
        images: (3, h, w) uint8 each, for the ranges of the activations.
        shape: of the file's input.
    """
    onnx = need_package("onnx")
    tools = need_package("onnxruntime.quantization")
    need_package("onnxruntime.quantization.shape_inference")
    prepared = target.with_suffix(".prepared")
    # PyTorch writes equal biases once, behind an Identity; quantization wants them in their place.
    # Shapes that depend on the image have no symbols.
    tools.shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
    kept = [x.name for x in onnx.load(str(prepared)).graph.node if _predicts(x.name)]
    tools.quantize_static(
        str(prepared),
        str(target),
        _reader(tools, images, shape),
        quant_format=tools.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm"],
        nodes_to_exclude=kept,
        per_channel=True,
        # Seven bits of weights: eight overflow on processors without VNNI.
        reduce_range=True,
    )
    prepared.unlink()


def _predicts(name: str) -> bool:
    """Whether a node's path names a prediction layer; a repeated call has a number behind it."""
    return any(part.rstrip("0123456789").rstrip("_") in _PREDICTIONS for part in name.split("/"))


def _reader(tools: Any, images: Sequence[Tensor], shape: InputShape) -> Any:
    def batches() -> Iterator[dict[str, Any]]:
        for image in images:
            stacked, sizes = stack_images([image], shape)
            yield {"images": stacked.numpy(), "image_sizes": sizes.numpy()}

    class Reader(tools.CalibrationDataReader):
        """onnxruntime asks it for one batch after the other, and for None at the end."""

        def __init__(self) -> None:
            self.batches = batches()

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    return Reader()
