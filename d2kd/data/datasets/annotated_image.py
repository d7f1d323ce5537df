# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What every annotation format is read into, as it was written: nothing is repaired yet.

Boxes are x0, y0, x1, y1 in pixels of the image as it is read (EXIF rotation applied), continuous
coordinates: the image spans 0..width and 0..height.
"""

from typing import Any, NamedTuple

__all__ = ["AnnotatedImage", "Annotation", "Box", "ReadSet"]

Box = tuple[float, float, float, float]


class Annotation(NamedTuple):
    """One object.

    Attributes:
        category: name of its class.
        box: in pixels; a maximum may be below its minimum where it was written so.
        written: the four numbers of the file.
        ignore: a crowd (COCO) or difficult (VOC): neither trained on nor counted as missed.
        number: what names it in messages: the annotation's id, or its place in the file.
        extra: further keys for the dataset dict: segmentation and keypoints.
        bad_mask: why a mask that was written cannot be used; empty if it can, or if there is none.
    """

    category: str
    box: Box
    written: Box
    ignore: bool
    number: Any
    extra: dict[str, Any]
    bad_mask: str = ""


class AnnotatedImage(NamedTuple):
    """One image.

    Attributes:
        size: width and height as the annotations state them; 0 where they do not.
        source: the file that holds the annotations.
        counted_from_0: a VOC file with a coordinate that counting from 1 cannot give.
    """

    image_id: Any
    file_name: str
    size: tuple[float, float]
    source: str
    objects: list[Annotation]
    counted_from_0: bool = False


class ReadSet(NamedTuple):
    """What a reader returns.

    Attributes:
        images: in the order that the file or split gives.
        classes: the names that the annotations know.
        keypoint_names: of the categories; empty where they name none.
    """

    images: list[AnnotatedImage]
    classes: tuple[str, ...]
    keypoint_names: tuple[str, ...] = ()
