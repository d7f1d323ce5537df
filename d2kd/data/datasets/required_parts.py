# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The masks and keypoints that MODEL.MASK_ON and MODEL.KEYPOINT_ON need of a training set."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode

from ...utils.errors import DatasetError
from ...utils.text import first_few
from .annotated_image import AnnotatedImage, Annotation, ReadSet
from .declaration import Declaration
from .masks import mask_extent

__all__ = ["Keypoints", "check_required", "keypoints_of"]


# Overlap of a mask's extent and its box (intersection over union) below which they differ.
MISPLACED = 0.1


class Keypoints(NamedTuple):
    """A data set's keypoints: names, and the pairs that a mirror exchanges; None if unknown."""

    names: tuple[str, ...]
    flip: tuple[tuple[str, str], ...] | None


def _pairs_by_name(names: Sequence[str]) -> tuple[tuple[str, str], ...] | None:
    """Pairs of names that differ by left and right alone; None without any."""
    pairs = []
    for name in names:
        for left, right in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT")):
            if left in name and name.replace(left, right) in names:
                pairs.append((name, name.replace(left, right)))
    return tuple(pairs) or None


def keypoints_of(declaration: Declaration, read: ReadSet) -> Keypoints | None:
    """The keypoints as the declaration names them, or else the file; None where neither does.

    Raises:
        DatasetError: KEYPOINT_FLIP has a name that is no keypoint.
    """
    names = declaration.keypoint_names or read.keypoint_names
    flip = declaration.keypoint_flip
    unknown = [name for pair in flip or () for name in pair if name not in names]
    if unknown:
        raise DatasetError(
            f"DATASETS.CUSTOM.{declaration.name}.KEYPOINT_FLIP: {first_few(unknown)} is not among "
            f"the keypoints {list(names)}"
        )
    if not names:
        return None
    return Keypoints(names, _pairs_by_name(names) if flip is None else flip)


def _flaws(
    images: Sequence[AnnotatedImage], flaw_of: Callable[[Annotation], str]
) -> tuple[list[str], int]:
    """Where objects that are trained on have a flaw, and how many objects there are."""
    places, count = [], 0
    for image in images:
        for item in image.objects:
            x0, y0, x1, y1 = item.box
            if item.ignore or x0 == x1 or y0 == y1:
                continue
            count += 1
            flaw = flaw_of(item)
            if flaw:
                label = os.path.basename(image.file_name)
                places.append(f"{label}, annotation {item.number} ({flaw})")
    return places, count


def check_required(
    declaration: Declaration,
    images: Sequence[AnnotatedImage],
    keypoints: Keypoints | None,
    cfg: CfgNode,
) -> None:
    """A training set has the masks and keypoints that the detector is trained on.

    Raises:
        DatasetError: names the key, and the images and annotations without.
    """
    if cfg.MODEL.MASK_ON:
        _check_masks(declaration, images, cfg.INPUT.MASK_FORMAT)
    if cfg.MODEL.KEYPOINT_ON:
        _check_keypoint_names(declaration, keypoints, cfg)
        _check_keypoints(declaration, images, len(keypoints.names))
        least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            _check_visible(declaration, images, least)


def _check_masks(
    declaration: Declaration, images: Sequence[AnnotatedImage], mask_format: str
) -> None:
    """Every object that is trained on has a mask, of a form that INPUT.MASK_FORMAT can hold."""
    places, count = _flaws(images, _mask_flaw)
    if places:
        raise DatasetError(
            f"{declaration.annotations}: MODEL.MASK_ON is True, but {len(places)} of {count} "
            f"objects have no mask: {first_few(places)}. Add their 'segmentation' (COCO), or set "
            "MODEL.MASK_ON to False."
        )
    if mask_format == "polygon":
        places, count = _flaws(images, _run_length_flaw)
        if places:
            raise DatasetError(
                f"{declaration.annotations}: INPUT.MASK_FORMAT is 'polygon', but {len(places)} of "
                f"{count} objects have another mask: {first_few(places)}. Set INPUT.MASK_FORMAT to "
                "'bitmask'."
            )
    places, count = _flaws(images, _misplaced_flaw)
    if 2 * len(places) > count:
        raise DatasetError(
            f"{declaration.annotations}: the masks of {len(places)} of {count} objects lie "
            f"elsewhere than their boxes: {first_few(places)}. Both are in pixels of the image as "
            "it is read; correct 'segmentation', or set MODEL.MASK_ON to False."
        )


def _mask_flaw(item: Annotation) -> str:
    return "" if "segmentation" in item.extra else item.bad_mask or "none"


def _misplaced_flaw(item: Annotation) -> str:
    """Whether a mask and its box cover each other by less than a tenth."""
    corners = np.array([item.box, mask_extent(item.extra["segmentation"])]).reshape(2, 2, 2)
    low, high = corners.min(axis=1), corners.max(axis=1)  # (box and mask, x and y)
    common = (high.min(axis=0) - low.max(axis=0)).clip(min=0).prod()
    areas = (high - low).prod(axis=1)
    if common >= MISPLACED * (areas.sum() - common):
        return ""
    return "from " + " to ".join(f"{x:g}, {y:g}" for x, y in (low[1], high[1]))


def _run_length_flaw(item: Annotation) -> str:
    return "run-length encoding" if isinstance(item.extra["segmentation"], dict) else ""


def _check_keypoint_names(
    declaration: Declaration, keypoints: Keypoints | None, cfg: CfgNode
) -> None:
    """The keypoints have names, as many as the detector predicts, and a mirror image."""
    key = f"DATASETS.CUSTOM.{declaration.name}"
    count = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if keypoints is None:
        raise DatasetError(
            f"MODEL.KEYPOINT_ON is True, but nothing names the keypoints of '{declaration.name}'. "
            f"Add 'keypoints' to the category in {declaration.annotations}, or set "
            f"{key}.KEYPOINT_NAMES to {count} names."
        )
    if len(keypoints.names) != count:
        raise DatasetError(
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {count}, but '{declaration.name}' has "
            f"{len(keypoints.names)} keypoints ({first_few(keypoints.names)}). Set it to "
            f"{len(keypoints.names)}."
        )
    if keypoints.flip is None and cfg.INPUT.RANDOM_FLIP == "horizontal":
        raise DatasetError(
            f"INPUT.RANDOM_FLIP is 'horizontal', but nothing says which keypoints of "
            f"'{declaration.name}' a mirror exchanges. Set {key}.KEYPOINT_FLIP to pairs of names, "
            "as [[left_eye, right_eye], ...], or to [] if every keypoint stays what it is; or set "
            "INPUT.RANDOM_FLIP to 'none'."
        )


def _check_keypoints(
    declaration: Declaration, images: Sequence[AnnotatedImage], count: int
) -> None:
    """Every object that is trained on has so many keypoints, those that cannot be seen included."""

    def flaw_of(item: Annotation) -> str:
        numbers = len(item.extra.get("keypoints", ()))
        return "" if numbers == 3 * count else f"{numbers} numbers"

    places, objects = _flaws(images, flaw_of)
    if places:
        raise DatasetError(
            f"{declaration.annotations}: MODEL.KEYPOINT_ON is True, but {len(places)} of {objects} "
            f"objects do not have {count} keypoints of x, y, visibility: {first_few(places)}. "
            "Write them (0, 0, 0 for one that is not labelled), or set MODEL.KEYPOINT_ON to False."
        )


def _check_visible(declaration: Declaration, images: Sequence[AnnotatedImage], least: int) -> None:
    """Not every image is left out for want of labelled keypoints."""
    counts = [
        sum(x > 0 for item in image.objects for x in item.extra.get("keypoints", ())[2::3])
        for image in images
    ]
    if max(counts) < least:
        raise DatasetError(
            f"{declaration.annotations}: no image has as many labelled keypoints as "
            f"MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE ({least}), so that all are left out: "
            f"set it to {max(counts)} at most, or label keypoints (visibility 1 or 2)."
        )
