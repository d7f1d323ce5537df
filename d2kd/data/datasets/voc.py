# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Reader of Pascal VOC layout: one XML file for each image, and a text file that lists a split.

Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010; development kit 2012.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from ...utils.errors import DatasetError
from .annotated_image import AnnotatedImage, Annotation, Box, ReadSet
from .image_files import separator_hint

__all__ = ["read_voc"]

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG")


def _parse_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file in which entities may not be declared, so that none is ever followed.

    Raises:
        DatasetError: it is malformed (with the line), or declares an entity.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()

    def forbid(name: str, *_: Any) -> NoReturn:
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
    except DatasetError:
        raise
    except (LookupError, ValueError) as error:  # an encoding that Python or expat does not know
        raise DatasetError(f"{path}: malformed XML: {error}") from error
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


def _numbers_of(element: ElementTree.Element, path: Path) -> Box:
    """xmin, ymin, xmax and ymax of an <object>, as they are written."""
    bndbox = element.find("bndbox")
    if bndbox is None:
        raise DatasetError(f"{path}: an <object> has no <bndbox>")
    x0, y0, x1, y1 = (_number_of(bndbox, tag, path) for tag in ("xmin", "ymin", "xmax", "ymax"))
    return x0, y0, x1, y1


def _to_edges(first: float, last: float) -> tuple[float, float]:
    """Two pixels of an axis, counted from 1 and both inside, to the edges around them.

    Equal ones are what labelling tools leave after a stray click, not one pixel: they are returned
    without extent, to be dropped. Two in the wrong order stay so, to be swapped.
    """
    if first == last:
        return first, first
    return (first - 1, last) if first < last else (first, last - 1)


def _to_box(written: Box, count_from: int) -> Box:
    """The box in continuous coordinates; those that are counted from 0 are taken as they are."""
    if count_from == 0:
        return written
    (x0, x1), (y0, y1) = _to_edges(*written[::2]), _to_edges(*written[1::2])
    return x0, y0, x1, y1


def _find_image(folder: Path, image_id: str, root: ElementTree.Element) -> Path:
    """The image of an annotation: named as the annotation is, or else as its <filename> says.

    Of several that are named so, as a .jpg and a .png, it is the one that <filename> says.
    """
    stated = (root.findtext("filename") or "").strip()
    if Path(stated).stem == Path(image_id).name and (folder / stated).is_file():
        return folder / stated
    for suffix in _IMAGE_SUFFIXES:
        if (folder / (image_id + suffix)).is_file():
            return folder / (image_id + suffix)
    return folder / (stated or image_id + _IMAGE_SUFFIXES[0])


def _is_difficult(item: ElementTree.Element, path: Path) -> bool:
    """VOC writes 0 or 1, some programs false or true; DatasetError for anything else."""
    text = (item.findtext("difficult") or "").strip().lower()
    if text not in ("", "0", "false", "1", "true"):
        raise DatasetError(f"{path}: <difficult> must be 0 or 1, not '{text}'")
    return text in ("1", "true")


def _read_objects(root: ElementTree.Element, path: Path, count_from: int) -> list[Annotation]:
    """The objects of a file; those marked <difficult> are to be ignored."""
    objects = []
    for number, item in enumerate(root.iter("object"), 1):
        written = _numbers_of(item, path)
        objects.append(
            Annotation(
                category=_text_of(item, "name", path),
                box=_to_box(written, count_from),
                written=written,
                ignore=_is_difficult(item, path),
                number=number,
                extra={},
            )
        )
    return objects


def _read_image(path: Path, images: Path, image_id: str, count_from: int) -> AnnotatedImage:
    """One image's annotation file."""
    root = _parse_xml(path)
    size = root.find("size")
    if size is None:
        raise DatasetError(f"{path}: there is no <size> with <width> and <height>")
    objects = _read_objects(root, path, count_from)
    return AnnotatedImage(
        image_id=image_id,
        file_name=str(_find_image(images, image_id, root)),
        size=(_number_of(size, "width", path), _number_of(size, "height", path)),
        source=str(path),
        objects=objects,
        counted_from_0=count_from == 1 and any(0 <= y < 1 for x in objects for y in x.written),
    )


def _read_split(split: Path) -> list[str]:
    """The image names that a text file lists; DatasetError if it lists none, or one twice."""
    try:
        lines = split.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{split} is no UTF-8 text with one image name a line: {error}"
        ) from error
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise DatasetError(f"{split} lists no image; put one image name a line into it")
    twice = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise DatasetError(f"{split} lists image '{twice[0]}' more than once; remove duplicates")
    return ids


def _list_folder(annotations: Path) -> list[str]:
    """The names of all XML files of a folder, sorted; hidden ones are other programs'."""
    ids = sorted(path.stem for path in annotations.glob("*.xml") if path.name[0] != ".")
    if not ids:
        raise DatasetError(f"{annotations}: there is no .xml file in this folder (ANNOTATIONS)")
    return ids


def read_voc(annotations: Path, images: Path, split: Path | None, count_from: int = 1) -> ReadSet:
    """Read a split of a VOC-layout set.

    Args:
        annotations: folder of ``<image>.xml``.
        images: folder of ``<image>.jpg`` (or .jpeg, .png, .bmp).
        split: text file with the name of one image, without suffix, a line; None for all XML files
            of the folder.
        count_from: 1 if the upper left pixel is 1, 1 and boxes include their last pixels, as VOC
            says; 0 if the coordinates are edges between pixels, from 0 on.

    Returns:
        The images in the order of the split, and the sorted names of the classes that occur.

    Raises:
        DatasetError: with the file (and line) that is missing or malformed.
    """
    ids = _read_split(split) if split else _list_folder(annotations)
    read = []
    for image_id in ids:
        path = annotations / f"{image_id}.xml"
        if not path.is_file():
            raise DatasetError(
                f"{path} is not there, but {split} lists '{image_id}'.{separator_hint(str(path))} "
                "Correct ANNOTATIONS or SPLIT of this data set, or the list."
            )
        read.append(_read_image(path, images, image_id, count_from))
    classes = tuple(sorted({item.category for image in read for item in image.objects}))
    if not classes:
        listed = f"the images that {split} lists" if split else "its XML files"
        raise DatasetError(f"{annotations}: not one <object> in {listed}")
    return ReadSet(read, classes)
