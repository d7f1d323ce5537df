# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Teachers that pad every image to one square (ViTDet), beside students that do not.

Shape shorthand in this file:
    N: images; C, H, W: channels, height and width of a feature level
"""

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from ..utils.errors import PairMismatchError

__all__ = ["check_fits_square", "crop_maps", "pad_to_square", "padded_size", "square_size"]


def square_size(backbone: nn.Module) -> int:
    """The side of the square in pixels; 0 if the backbone takes any size.

    Args:
        backbone: ``padding_constraints`` is Detectron2 main's; backbones of 0.6 have none.
    """
    constraints = getattr(backbone, "padding_constraints", None) or {}
    return constraints.get("square_size", 0)


def check_fits_square(batch: list[dict], square: int) -> None:
    """No image is larger than the square; Detectron2 would cut a single one in silence.

    Raises:
        PairMismatchError: names the image, its size, and what to set.
    """
    for sample in batch:
        height, width = sample["image"].shape[-2:]
        if max(height, width) > square:
            name = sample.get("file_name", "an image")
            raise PairMismatchError(
                f"{name} has {width}x{height} pixels after the student's resizing, and the teacher "
                f"pads to {square}x{square}: set INPUT.MAX_SIZE_TRAIN to {square} or less"
            )


def pad_to_square(images: ImageList, square: int) -> ImageList:
    """Add what is lacking on the right and below: release 0.6 does not know of squares."""
    height, width = images.tensor.shape[-2:]
    if (height, width) == (square, square):
        return images
    padded = F.pad(images.tensor, (0, square - width, 0, square - height))
    return ImageList(padded[..., :square, :square].contiguous(), images.image_sizes)


def padded_size(batch: list[dict], multiple: int) -> tuple[int, int]:
    """Height and width of a batch whose images are padded to the largest, and to a multiple."""
    sizes = torch.tensor([list(sample["image"].shape[-2:]) for sample in batch])
    height, width = (-(-int(x) // max(1, multiple)) * max(1, multiple) for x in sizes.amax(0))
    return height, width


def crop_maps(
    features: dict[str, Tensor], shapes: dict[str, ShapeSpec], size: tuple[int, int]
) -> dict[str, Tensor]:
    """The part of each level that lies over the student's padded images.

    Args:
        features: level -> (N, C, H, W) of the square.
        shapes: ``backbone.output_shape()``, for the strides.
        size: height and width of the student's padded images, in pixels.
    """
    cropped = {}
    for name, x in features.items():
        high, wide = (-(-side // shapes[name].stride) for side in size)
        cropped[name] = x[:, :, :high, :wide]
    return cropped
