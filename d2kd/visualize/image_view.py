# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""All that one figure shows of one image: both detectors, and the student at one or two times.

Shape shorthand in this file:
    H, W: height and width of the image
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb

from ..modeling import Distiller
from ..structures import DistillStep
from .detections import FoundBoxes, detect, true_boxes
from .level_maps import FeatureMaps, Maps, feature_maps, level_masks
from .region_view import RegionView, view_regions

__all__ = ["ImageView", "StudentView", "view_image", "view_student"]


@dataclass(frozen=True)
class StudentView:
    """The student at one time, beside the teacher.

    Attributes:
        name: of the time, such as "at its start".
        masks: "mask (losses)" -> level -> (H, W) of the level.
        features: energies and distance of the feature loss.
        regions: None where no loss reads a region.
        detections: None of a detector without boxes.
    """

    name: str
    masks: dict[str, Maps]
    features: FeatureMaps
    regions: RegionView | None
    detections: FoundBoxes | None


@dataclass(frozen=True)
class ImageView:
    """One training image.

    Attributes:
        title: what it is called.
        pixels: (H, W, 3) uint8, RGB, as augmented.
        truth: its ground truth.
        teacher: what the teacher finds; None of a detector without boxes.
        students: the student at each time.
        strides: level name -> pixels per cell.
        classes: their names; empty where not known.
    """

    title: str
    pixels: np.ndarray
    truth: FoundBoxes
    teacher: FoundBoxes | None
    students: Sequence[StudentView]
    strides: dict[str, int]
    classes: Sequence[str] = ()


def view_student(
    name: str, distiller: Distiller, batch: Sequence[dict[str, Any]], step: DistillStep, image: int
) -> StudentView:
    """Look at one image of a step, with the weights that the student has now.

    Call it without gradients. Modes, weights and random streams stay as they are.

    Args:
        name: of the time.
        batch: of the step.
        image: index in the batch.
    """
    losses = distiller.distill_losses
    return StudentView(
        name,
        level_masks(losses, step, image),
        feature_maps(losses, step, image),
        view_regions(losses, step, image),
        detect(distiller.student, batch[image]),
    )


def view_image(
    title: str,
    distiller: Distiller,
    sample: dict[str, Any],
    students: Sequence[StudentView],
    *,
    strides: dict[str, int],
    image_format: str,
    classes: Sequence[str] = (),
) -> ImageView:
    """Put what was seen of one image together.

    Args:
        sample: what the training mapper gave.
        image_format: INPUT.FORMAT of the student.
    """
    pixels = convert_image_to_rgb(sample["image"].permute(1, 2, 0).cpu(), image_format)
    return ImageView(
        title,
        np.ascontiguousarray(pixels).astype(np.uint8),
        true_boxes(sample),
        detect(distiller.teacher, sample),
        students,
        strides,
        classes,
    )
