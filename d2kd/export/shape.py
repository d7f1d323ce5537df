# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The size of a file's input, and images laid upon it.

Shape shorthand in this file:
    N: images; H, W: height and width of the canvas that all images of a batch share
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.errors import ConfigError

__all__ = ["InputShape", "stack_images"]


@dataclass(frozen=True)
class InputShape:
    """What a file takes: a fixed number or size of images, or any.

    Attributes:
        batch: images of a batch; 0 for any number.
        size: height and width of the canvas in pixels; None for any.
    """

    batch: int = 0
    size: tuple[int, int] | None = None

    def example(self) -> tuple[Tensor, Tensor]:
        """Noise of this shape to record a graph with, and its sizes."""
        height, width = self.size or (128, 160)
        generator, count = torch.Generator().manual_seed(0), self.batch or 2
        images = torch.randint(
            256, (count, 3, height, width), generator=generator, dtype=torch.uint8
        )
        return images, torch.tensor([[height, width]] * count)


def stack_images(images: Sequence[Tensor], shape: InputShape) -> tuple[Tensor, Tensor]:
    """Images (3, h, w), each in the upper left corner of a canvas, as a file takes them.

    A batch that the shape fixes is filled up with images of one pixel.

    Returns:
        Tensors (N, 3, H, W) uint8 and (N, 2) int64, the heights and widths.

    Raises:
        ConfigError: an image is larger than the canvas.
    """
    largest = tuple(max(x.shape[i] for x in images) for i in (1, 2))
    height, width = shape.size or largest
    if largest[0] > height or largest[1] > width:
        raise ConfigError(
            f"--size {height} {width} is too small: an image is {largest[0]} high and {largest[1]} "
            "wide after the resize of INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST"
        )
    count = shape.batch or len(images)
    result = torch.zeros(count, 3, height, width, dtype=images[0].dtype)
    sizes = torch.ones(count, 2, dtype=torch.long)
    for i, image in enumerate(images):
        result[i, :, : image.shape[1], : image.shape[2]] = image
        sizes[i] = torch.tensor(image.shape[1:])
    return result, sizes
