# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Reader of Pascal VOC layout: one XML file for each image, and a text file that lists a split.

Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010; development kit 2012.
"""

import math
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from ...utils.errors import DatasetError
from .dataset_dicts import AnnotatedImage, Annotation

__all__ = ["read_voc"]

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG")


def _parse_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file in which entities may not be declared, so that none is ever followed.

    Raises:
        DatasetError: it is malformed (with the line), or declares an entity.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()

    def forbid(name: str, *_) -> NoReturn:
        raise DatasetError(
            f"{path}:{parser.CurrentLineNumber}: declares the XML entity '{name}'; annotations "
            "need none, and entities are never followed. Remove the declaration."
        )

    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = forbid
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise DatasetError(f"{path}:{error.lineno}: malformed XML: {error}") from error
    return builder.close()


def _text_of(element: ElementTree.Element, tag: str, path: Path) -> str:
    """The text of a child element; DatasetError naming the file when there is none."""
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise DatasetError(f"{path}: <{element.tag}> has no <{tag}>, or an empty one")
    return text


def _number_of(element: ElementTree.Element, tag: str, path: Path) -> float:
    """The finite number in a child element; DatasetError naming the file when it is none."""
    text = _text_of(element, tag, path)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(f"{path}: <{tag}> must hold a number, not '{text}'")
    return value


def _box_of(element: ElementTree.Element, path: Path) -> tuple[float, float, float, float]:
    """The box of an <object>, from VOC's 1-based inclusive pixels to continuous coordinates.

    A box whose maximum does not exceed its minimum is what labelling tools leave after a stray
    click, not one pixel: it is returned without extent, to be dropped as degenerate.
    """
    bndbox = element.find("bndbox")
    if bndbox is None:
        raise DatasetError(f"{path}: an <object> has no <bndbox>")
    x0, y0, x1, y1 = (_number_of(bndbox, tag, path) for tag in ("xmin", "ymin", "xmax", "ymax"))
    if x1 <= x0 or y1 <= y0:
        return (x0, y0, x0, y0)
    return (x0 - 1, y0 - 1, x1, y1)


def _find_image(folder: Path, image_id: str, root: ElementTree.Element) -> Path:
    """The image of an annotation: named as the annotation is, or else as its <filename> says."""
    for suffix in _IMAGE_SUFFIXES:
        if (folder / (image_id + suffix)).is_file():
            return folder / (image_id + suffix)
    stated = (root.findtext("filename") or "").strip()
    return folder / (stated or image_id + _IMAGE_SUFFIXES[0])


def _read_image(annotations: Path, images: Path, image_id: str, split: Path) -> AnnotatedImage:
    """One image's annotation file; objects marked <difficult> are to be ignored."""
    path = annotations / f"{image_id}.xml"
    if not path.is_file():
        raise DatasetError(
            f"{path} is not there, but {split} lists '{image_id}'. Correct ANNOTATIONS or SPLIT of "
            "this data set, or the list."
        )
    root = _parse_xml(path)
    size = root.find("size")
    if size is None:
        raise DatasetError(f"{path}: there is no <size> with <width> and <height>")
    objects = []
    for item in root.iter("object"):
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        objects.append(Annotation(_text_of(item, "name", path), _box_of(item, path), difficult, {}))
    return AnnotatedImage(
        image_id=image_id,
        file_name=str(_find_image(images, image_id, root)),
        size=(int(_number_of(size, "width", path)), int(_number_of(size, "height", path))),
        source=str(path),
        objects=objects,
    )


def read_voc(
    annotations: Path, images: Path, split: Path
) -> tuple[list[AnnotatedImage], tuple[str, ...]]:
    """Read a split of a VOC-layout set.

    Args:
        annotations: folder of ``<image>.xml``.
        images: folder of ``<image>.jpg`` (or .jpeg, .png, .bmp).
        split: text file with the name of one image, without suffix, a line.

    Returns:
        The images in the order of the split, and the sorted names of the classes that occur.

    Raises:
        DatasetError: with the file (and line) that is missing or malformed.
    """
    try:
        lines = split.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{split} is no UTF-8 text with one image name a line: {error}"
        ) from error
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise DatasetError(f"{split} lists no image; put one image name a line into it")
    seen = set()
    twice = [image_id for image_id in ids if image_id in seen or seen.add(image_id)]
    if twice:
        raise DatasetError(f"{split} lists image '{twice[0]}' more than once; remove duplicates")
    read = [_read_image(annotations, images, image_id, split) for image_id in ids]
    classes = tuple(sorted({item.category for image in read for item in image.objects}))
    if not classes:
        raise DatasetError(f"{annotations}: not one <object> in the images that {split} lists")
    return read, classes
