# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Exported files, called like a Detectron2 detector."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .packages import need_package
from .shape import InputShape, stack_images

__all__ = ["ExportedDetector", "open_exported"]

# images (N, 3, H, W), image_sizes (N, 2) -> boxes, scores, classes and perhaps masks.
Run = Callable[[Tensor, Tensor], Sequence[Tensor]]


class ExportedDetector:
    """A file that is called as Detectron2's detectors are: a list of dicts in, a list out."""

    def __init__(self, run: Run, shape: InputShape):
        """
        Args:
            run: what the file computes.
            shape: what it takes.
        """
        self.run = run
        self.shape = shape

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        images = [x["image"] for x in batched_inputs]
        outputs = self.run(*stack_images(images, self.shape))
        return [
            {"instances": _instances([output[i] for output in outputs], x)}
            for i, x in enumerate(batched_inputs)
        ]


def _instances(outputs: list[Tensor], record: dict[str, Any]) -> Instances:
    """One image's detections, in pixels of its "height" and "width" where it has them."""
    boxes, scores, classes, *masks = outputs
    found, size = scores > 0, record["image"].shape[1:]
    result = Instances(tuple(size), pred_boxes=Boxes(boxes[found]), scores=scores[found])
    result.pred_classes = classes[found]
    if masks:
        result.pred_masks = masks[0][found][:, None]
    height, width = record.get("height", size[0]), record.get("width", size[1])
    return detector_postprocess(result, height, width)


def open_exported(path: Path, shape: InputShape, threads: int) -> ExportedDetector:
    """Load a file as its users do.

    Args:
        path: of an .onnx, .ts or .pt2.
        shape: that it was written with.
        threads: of the CPU that onnxruntime may use; PyTorch has its own setting.
    """
    openers = {".onnx": _open_onnx, ".ts": _open_torchscript, ".pt2": _open_program}
    return ExportedDetector(openers[path.suffix](path, threads), shape)


def _open_onnx(path: Path, threads: int) -> Run:
    onnxruntime = need_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait by spinning slow what is timed beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)

    def run(images: Tensor, sizes: Tensor) -> Sequence[Tensor]:
        inputs = {"images": images.numpy(), "image_sizes": sizes.numpy()}
        return [torch.from_numpy(x) for x in session.run(None, inputs)]

    return run


def _open_torchscript(path: Path, threads: int) -> Run:
    return _without_gradients(torch.jit.load(str(path)))


def _open_program(path: Path, threads: int) -> Run:
    return _without_gradients(torch.export.load(str(path)).module())


def _without_gradients(model: Callable) -> Run:
    return torch.no_grad()(model)
