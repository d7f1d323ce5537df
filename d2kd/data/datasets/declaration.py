# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""One entry of DATASETS.CUSTOM: its keys and values, checked, and the paths resolved."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ...utils.errors import DatasetError
from ...utils.text import did_you_mean
from .annotated_image import ReadSet
from .coco import read_coco
from .dataset_root import dataset_root
from .voc import read_voc

__all__ = ["Declaration", "parse_declaration"]

_REQUIRED_KEYS = ("FORMAT", "ANNOTATIONS", "IMAGES")
# Format -> the further keys that it reads; each may be left out.
_OPTIONAL_KEYS = {
    "coco": ("CLASSES", "KEYPOINT_NAMES", "KEYPOINT_FLIP"),
    "voc": ("CLASSES", "SPLIT", "COUNT_FROM"),
}


@dataclass(frozen=True)
class Declaration:
    """A declared data set.

    Attributes:
        split: VOC's list of images; None for all files of the folder, and for COCO.
        classes: as declared; None where the annotations decide.
        count_from: what VOC's upper left pixel is called, 0 or 1.
        keypoint_names: as declared; None where the annotations decide.
        keypoint_flip: pairs of keypoints that a mirror exchanges; None where the names decide.
    """

    name: str
    format: str
    annotations: Path
    images: Path
    split: Path | None = None
    classes: tuple[str, ...] | None = None
    count_from: int = 1
    keypoint_names: tuple[str, ...] | None = None
    keypoint_flip: tuple[tuple[str, str], ...] | None = None

    def read(self) -> ReadSet:
        """The annotated images, and the classes that the annotations know."""
        if self.format == "voc":
            return read_voc(self.annotations, self.images, self.split, self.count_from)
        return read_coco(self.annotations, self.images)


def _check_keys(name: str, node: CfgNode) -> None:
    """FORMAT is known, the keys that it needs are there, and none that it does not read."""
    key = f"DATASETS.CUSTOM.{name}"
    if not isinstance(node, dict):
        raise DatasetError(f"{key} must be a mapping with the keys {_REQUIRED_KEYS}")
    known = {*_REQUIRED_KEYS, *(x for keys in _OPTIONAL_KEYS.values() for x in keys)}
    for entry in node:
        if entry not in known:
            raise DatasetError(
                f"Unknown key {key}.{entry}; known: {sorted(known)}.{did_you_mean(entry, known)}"
            )
    kind = node.get("FORMAT")
    if kind not in tuple(_OPTIONAL_KEYS):
        raise DatasetError(f"Set {key}.FORMAT to one of {tuple(_OPTIONAL_KEYS)}, not {kind!r}")
    for entry in _REQUIRED_KEYS:
        if entry not in node:
            raise DatasetError(f"{key} lacks the key {entry}; FORMAT {kind} needs it")
    for entry in node:
        if entry not in (*_REQUIRED_KEYS, *_OPTIONAL_KEYS[kind]):
            hint = " A COCO file is a split." if entry == "SPLIT" else ""
            raise DatasetError(f"Remove {key}.{entry}: FORMAT {kind} does not read it.{hint}")


def _resolve_path(name: str, entry: str, value: str, kind: str) -> Path:
    """The path that a key names; DatasetError when there is no such file or folder."""
    key = f"DATASETS.CUSTOM.{name}.{entry}"
    if not isinstance(value, str) or not value:
        raise DatasetError(f"{key} must be a path, not {value!r}")
    path = dataset_root() / Path(value).expanduser()
    if not (path.is_dir() if kind == "folder" else path.is_file()):
        raise DatasetError(
            f"{key}: there is no {kind} {path}. Set the key to an existing {kind}; relative paths "
            f"start from $DETECTRON2_DATASETS, which now means {dataset_root().absolute()}."
        )
    return path


def _names(name: str, entry: str, node: CfgNode) -> tuple[str, ...] | None:
    """A list of different names as a tuple; None when it is not given."""
    value = node.get(entry)
    if value is None:
        return None
    strings = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    if not strings or not value or len(set(value)) < len(value):
        raise DatasetError(
            f"DATASETS.CUSTOM.{name}.{entry} must be a list of different names, not {value!r}"
        )
    return tuple(value)


def _is_pair(value: Any) -> bool:
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and all(isinstance(item, str) for item in value) and value[0] != value[1]


def _flip_pairs(name: str, node: CfgNode) -> tuple[tuple[str, str], ...] | None:
    """KEYPOINT_FLIP as a tuple of pairs; None when it is not given."""
    value = node.get("KEYPOINT_FLIP")
    if value is None:
        return None
    pairs = isinstance(value, (list, tuple)) and all(map(_is_pair, value))
    names = [item for pair in value for item in pair] if pairs else []
    if not pairs or len(set(names)) < len(names):
        raise DatasetError(
            f"DATASETS.CUSTOM.{name}.KEYPOINT_FLIP must be a list of pairs of keypoint names, each "
            f"name once, as [[left_eye, right_eye], ...], or []; not {value!r}"
        )
    return tuple(map(tuple, value))


def _count_from(name: str, node: CfgNode) -> int:
    value = node.get("COUNT_FROM", 1)
    if value not in (0, 1) or isinstance(value, bool):
        raise DatasetError(f"Set DATASETS.CUSTOM.{name}.COUNT_FROM to 1 or 0, not {value!r}")
    return value


def parse_declaration(name: str, node: CfgNode) -> Declaration:
    """Check one entry of DATASETS.CUSTOM: its keys and values, and that its files are there.

    Raises:
        DatasetError: names the key.
    """
    _check_keys(name, node)
    kind = "folder" if node["FORMAT"] == "voc" else "file"
    split = node.get("SPLIT")
    return Declaration(
        name=name,
        format=node["FORMAT"],
        annotations=_resolve_path(name, "ANNOTATIONS", node["ANNOTATIONS"], kind),
        images=_resolve_path(name, "IMAGES", node["IMAGES"], "folder"),
        split=None if split is None else _resolve_path(name, "SPLIT", split, "file"),
        classes=_names(name, "CLASSES", node),
        count_from=_count_from(name, node),
        keypoint_names=_names(name, "KEYPOINT_NAMES", node),
        keypoint_flip=_flip_pairs(name, node),
    )
