# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""From annotations as they were written to Detectron2's dataset dicts: checked, then repaired."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from ...utils.errors import DatasetError
from ...utils.text import did_you_mean, first_few
from .annotated_image import AnnotatedImage
from .image_files import ImageHeader, read_header
from .remarks import HUGE, TINY, Remarks
from .repairs import remark_on_objects, repair_box
from .suspicion import suspect

__all__ = ["to_dataset_dicts"]


def _class_index(name: str, classes: Sequence[str], source: str) -> int:
    """Position of a class; DatasetError naming the file when there is no such class."""
    if name in classes:
        return list(classes).index(name)
    raise DatasetError(
        f"{source}: unknown class '{name}'; the classes are {list(classes)}."
        f"{did_you_mean(name, classes)} They come from CLASSES of the data sets in use or, where "
        "none is given, from the training sets, and hold for the test sets too. Correct the "
        "annotation, or list every class in CLASSES of each set."
    )


def to_dataset_dicts(
    images: Sequence[AnnotatedImage],
    classes: Sequence[str],
    image_folder: str,
    *,
    corners: bool,
    detections: int = 0,
) -> tuple[list[dict], Remarks]:
    """Check the annotations as they were written, then repair single boxes and count that.

    Args:
        images: what a reader returned.
        classes: names in the order of their indices.
        image_folder: the declared folder; files outside it are remarked on.
        corners: whether the format's four numbers are two corners; else a corner and a size.
        detections: TEST.DETECTIONS_PER_IMAGE; images with more objects are remarked on. 0: none.

    Returns:
        Detectron2's dataset dicts with boxes in XYXY_ABS, and what was suspicious or repaired.

    Raises:
        DatasetError: an image is missing, unreadable or of another size than its annotation says;
            a class is unknown; the boxes as a whole are not what the format says.
    """
    headers = [read_header(image.file_name, image.source) for image in images]
    _check_sizes(images, headers)
    remarks = Remarks()
    _check_boxes(images, headers, corners, remarks)
    folder = os.path.join(os.path.realpath(image_folder), "")
    dicts: list[dict] = []
    files: set[str] = set()
    for image, header in zip(images, headers):
        _remark_on_file(image, header, folder, remarks)
        if image.file_name in files:
            remarks.add("listed_twice", os.path.basename(image.file_name))
        files.add(image.file_name)
        remark_on_objects(image, detections, remarks)
        record = {"file_name": image.file_name, "image_id": image.image_id}
        record.update(width=header.width, height=header.height)
        record["annotations"] = _repair_objects(image, header.size, classes, remarks)
        dicts.append(record)
    return dicts, remarks


def _check_sizes(images: Sequence[AnnotatedImage], headers: Sequence[ImageHeader]) -> None:
    """The stated sizes are the files': boxes drawn on another size would be misplaced."""
    other = [
        (image, header)
        for image, header in zip(images, headers)
        if 0 not in image.size and tuple(image.size) != header.size
    ]
    if not other:
        return
    places = [
        f"{os.path.basename(image.file_name)} is {header.width}x{header.height}, annotated as "
        f"{image.size[0]:g}x{image.size[1]:g}"
        for image, header in other
    ]
    raise DatasetError(
        f"{other[0][0].source}: {len(other)} of {len(images)} images differ in size from their "
        f"annotations: {first_few(places, 3)}. {_size_advice(other)}"
    )


def _size_advice(other: Sequence[tuple[AnnotatedImage, ImageHeader]]) -> str:
    """What to do about images whose size is not the stated one."""
    if all(header.transposed and image.size == header.size[::-1] for image, header in other):
        return (
            "These photos are turned by their EXIF tag when they are read, and were annotated "
            "unturned. Save them without the tag, or turn the boxes and the stated sizes too. If "
            "the boxes were drawn on the turned photos, swap the stated width and height only."
        )
    if all(image.size == header.size[::-1] for image, header in other):
        return (
            "Width and height are swapped: correct the stated sizes, after drawing a few boxes "
            "over their images."
        )
    return (
        "If the images were resized after they were annotated, scale the boxes and the stated "
        "sizes alike; if only the stated sizes are wrong, correct these."
    )


def _check_boxes(
    images: Sequence[AnnotatedImage],
    headers: Sequence[ImageHeader],
    corners: bool,
    remarks: Remarks,
) -> None:
    """The boxes as a whole are what the format says."""
    rows = [
        (*item.written, *header.size)
        for image, header in zip(images, headers)
        for item in image.objects
    ]
    table = np.asarray(rows, dtype=float).reshape(-1, 6)
    found = suspect(table[:, :4], table[:, 4:], corners)
    if found and found.fatal:
        sources = first_few(dict.fromkeys(image.source for image in images), 3)
        raise DatasetError(f"{sources}: {found.text}")
    if found:
        remarks.say("suspect", found.text)


def _remark_on_file(
    image: AnnotatedImage, header: ImageHeader, folder: str, remarks: Remarks
) -> None:
    """Add what is odd about an image file, and about the annotation file as a whole.

    Args:
        folder: where the image should lie: absolute, with a slash at its end.
    """
    label = os.path.basename(image.file_name)
    if 0 in image.size:
        remarks.add("unsized", os.path.basename(image.source))
    if image.counted_from_0:
        remarks.add("counted_from_0", os.path.basename(image.source))
    told = header.transposed and header.width != header.height and 0 not in image.size
    if header.orientation in range(2, 9) and not told:
        remarks.add("turned", label)
    if not os.path.realpath(image.file_name).startswith(folder):
        remarks.add("outside", image.file_name)
    if header.width * header.height > HUGE:
        remarks.add("huge", label)
    if min(header.size) < TINY:
        remarks.add("tiny", label)


def _repair_objects(
    image: AnnotatedImage, size: tuple[int, int], classes: Sequence[str], remarks: Remarks
) -> list[dict[str, Any]]:
    """The annotations of its dataset dict; what has no area inside the image is left out."""
    annotations, where = [], os.path.basename(image.file_name)
    for item in image.objects:
        category = _class_index(item.category, classes, image.source)
        box = repair_box(item, size, where, remarks)
        if item.bad_mask:
            remarks.add("masks", f"{where} (annotation {item.number})")
        if box is not None:
            annotations.append(
                {
                    **item.extra,
                    "bbox": box,
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": category,
                    "iscrowd": int(item.ignore),
                }
            )
    return annotations
