# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a whole detector finds on one image, its modules left as they were.

Shape shorthand in this file:
    B: boxes
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..modeling import FrozenTeacher
from ..utils.rng_state import kept_random_state

__all__ = ["FoundBoxes", "detect", "kept_tensors", "true_boxes"]


class FoundBoxes(NamedTuple):
    """Boxes of one image, on the CPU.

    Attributes:
        boxes: (B, 4) xyxy in pixels of the image that the networks are given.
        classes: (B,) 0..K-1.
        scores: (B,); None of the ground truth.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor | None


def true_boxes(sample: dict[str, Any]) -> FoundBoxes:
    """The ground truth of a training sample; of one without, no box."""
    instances = sample.get("instances")
    if instances is None or not instances.has("gt_boxes"):
        return FoundBoxes(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), None)
    return FoundBoxes(instances.gt_boxes.tensor.cpu(), instances.gt_classes.cpu(), None)


@torch.no_grad()
def detect(detector: nn.Module, sample: dict[str, Any]) -> FoundBoxes | None:
    """Run a detector as in an evaluation, on an image as the training prepared it.

    Args:
        detector: a student, or a FrozenTeacher.
        sample: what the training mapper gave.

    Returns:
        None of a detector that gives no boxes of classes.
    """
    height, width = sample["image"].shape[-2:]
    batch = [{**sample, "height": height, "width": width}]
    run = detector.detect if isinstance(detector, FrozenTeacher) else detector
    with _in_eval_mode(detector), kept_random_state():
        outputs = run(batch)
    output = outputs[0] if isinstance(outputs, list) and outputs else None
    found = output.get("instances") if isinstance(output, dict) else None
    if not isinstance(found, Instances) or not found.has("pred_boxes"):
        return None
    if not isinstance(found.pred_boxes, Boxes):  # rotated ones
        return None
    boxes = found.pred_boxes.tensor.float().cpu()
    return FoundBoxes(boxes, found.pred_classes.cpu(), found.scores.float().cpu())


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Each module goes on in its own mode: parts of a detector in training may be in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def kept_tensors(model: nn.Module) -> Iterator[None]:
    """Running statistics that a training forward inside moves are put back."""
    before = {name: x.clone() for name, x in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(before)
