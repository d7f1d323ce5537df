# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Masks: where on a feature level a distance counts, and how much.

A mask is a pure function ``(MaskInput, **parameters) -> (N, H, W)``. To add one, register it with
``@register_mask()``; configs then choose it by its name.

Shape shorthand in this file:
    N: images in the batch; B: ground-truth boxes of all images together
    K: foreground classes; A: anchors per location; H, W: height and width of the level
"""

from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.registry import Registry
from torch import Tensor

from ..structures import MaskInput
from ..utils.errors import PairMismatchError
from .helpers import full_precision

__all__ = [
    "BOX_LEVELS",
    "MASK_REGISTRY",
    "gaussian",
    "register_mask",
    "richness",
    "uniform",
]

# Of the gaussian mask: a box marks all levels, or its own.
BOX_LEVELS = ("all", "own")

MASK_REGISTRY = Registry("MASK")
MASK_REGISTRY.__doc__ = """
Functions ``(MaskInput, **parameters) -> (N, H, W)`` float32, detached, that say where on a level
student and teacher are compared. Fill it with :func:`register_mask`.
"""


def register_mask(
    *, requires: frozenset[str] = frozenset(), min_total: float = 1.0, of_boxes: bool = False
) -> Callable[[Callable], Callable]:
    """Registers a mask under its function's name.

    Args:
        requires: fields of the teacher's outputs that the mask reads, e.g. {"dense_logits"}.
        min_total: smallest normaliser of :func:`d2kd.losses.masked_means`, in cells.
        of_boxes: it is 0 outside of ground-truth boxes, so that a detector that is trained without
            boxes would learn nothing.
    """

    # Any: mypy knows no functions with attributes.
    def register(mask: Any) -> Callable:
        mask.requires = frozenset(requires)
        mask.min_total = min_total
        mask.of_boxes = of_boxes
        MASK_REGISTRY.register(mask)
        return mask

    return register


@register_mask()
def uniform(inputs: MaskInput) -> Tensor:
    """1 everywhere: the unweighted losses (hint, PKD, CWD, SSIM)."""
    return torch.ones(inputs.size, device=inputs.boxes.device)


@register_mask(of_boxes=True)
def gaussian(inputs: MaskInput, *, sigma2: float = 2.0, levels: str = "all") -> Tensor:
    """A 2-D Gaussian in every ground-truth box, 1 at its centre, 0 outside of all boxes.

    TAR (Sun et al., arXiv 2006.13108). No code was released, so the form is a reconstruction:
    ``exp(-(x - x0)^2 / (sigma2 (w / 2)^2) - (y - y0)^2 / (sigma2 (h / 2)^2))`` at the centres of
    the cells, overlapping boxes by maximum. A box less than one cell wide or high counts as one
    cell, so that every box marks at least one. TAR prints its feature loss with a factor 1/2;
    DISTILL.FEATURE.WEIGHT includes it. The paper does not publish the weight.

    Args:
        sigma2: squared width of the Gaussian in half boxes; 2 gives exp(-1/2) = 0.61 at the
            middle of an edge and 0.37 at a corner.
        levels: "all": every box on every level; "own": each box on the one level that its size
            belongs to. Which one the paper means is not published.

    Returns:
        (N, H, W), at least float32.

    Raises:
        ValueError: if ``levels`` is neither "all" nor "own".
    """
    if levels not in BOX_LEVELS:
        raise ValueError(f"levels of the gaussian mask must be 'all' or 'own', not {levels!r}")
    boxes = full_precision(inputs.boxes)
    if levels == "own":
        # Weighs instead of selecting: a selection's size would have to be known on the host.
        own = (_own_stride(boxes, inputs.strides) == inputs.stride).to(boxes.dtype)
    else:
        own = boxes.new_ones(len(boxes))
    num_images, height, width = inputs.size
    along_x = _gaussian_1d(boxes[:, 0::2] / inputs.stride, width, sigma2)
    along_y = _gaussian_1d(boxes[:, 1::2] / inputs.stride, height, sigma2) * own[:, None]
    per_box = along_y[:, :, None] * along_x[:, None, :]
    mask = boxes.new_zeros(num_images, height, width)
    index = inputs.image_index[:, None, None].expand_as(per_box)
    return mask.scatter_reduce_(0, index, per_box, "amax")


def _gaussian_1d(edges: Tensor, length: int, sigma2: float) -> Tensor:
    """One axis of the Gaussians: low and high edges (B, 2) in cells -> (B, length)."""
    low, high = edges[:, :1], edges[:, 1:]
    half = (high - low).clamp(min=1) / 2
    cells = torch.arange(length, device=edges.device, dtype=edges.dtype) + 0.5
    offset = cells - (low + high) / 2
    # Half open, so that a box of one cell's width between two cells marks exactly one.
    inside = (offset >= -half) & (offset < half)
    return torch.exp(-((offset / half) ** 2) / sigma2) * inside


def _own_stride(boxes: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Stride (B,) of the level each box belongs to by FPN's rule: 224 pixels on stride 16.

    FPN (Lin et al., arXiv 1612.03144, eq. 1), clamped to the strides there are.
    """
    sizes = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    wanted = 4 * 2 ** torch.floor(torch.log2(sizes / 56 + 1e-8))
    available = torch.tensor(strides, device=boxes.device, dtype=boxes.dtype)
    index = torch.bucketize(wanted, available, right=True) - 1
    return available[index.clamp(min=0)]


@register_mask(requires=frozenset({"dense_logits"}), min_total=1e-12)
def richness(inputs: MaskInput) -> Tensor:
    """The teacher's highest class probability at each location.

    FRS (Du et al., arXiv 2111.00674, section 3.2; released code): the maximum over all channels
    (anchors x classes) of the sigmoid of the teacher's dense logits. Soft, without a threshold
    and without ground truth. FCOS's centerness is left out; an RPN's logits are its objectness.

    Returns:
        (N, H, W), at least float32.

    Raises:
        PairMismatchError: if the teacher has no dense logits on this level.
    """
    logits = inputs.teacher_logits
    if logits is None:
        raise PairMismatchError(
            f"the richness mask needs the teacher's dense logits on the level of stride "
            f"{inputs.stride}, but its dense head does not read that level: leave the level out "
            "of DISTILL.FEATURE.LEVELS, or set DISTILL.FEATURE.MASK to another mask"
        )
    return full_precision(logits.detach().amax(dim=1)).sigmoid()
