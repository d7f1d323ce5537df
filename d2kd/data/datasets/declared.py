# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Data sets declared in the config under DATASETS.CUSTOM, without any Python.

    DATASETS:
      CUSTOM:
        bccd_test: {FORMAT: voc, ANNOTATIONS: bccd/Annotations, IMAGES: bccd/JPEGImages,
                    SPLIT: bccd/ImageSets/Main/test.txt}
      TEST: ("bccd_test",)

Relative paths start from ``$DETECTRON2_DATASETS`` (default: ``./datasets``).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...utils.errors import DatasetError
from ...utils.text import did_you_mean
from .coco import read_coco
from .dataset_dicts import AnnotatedImage, Remarks, to_dataset_dicts
from .dataset_root import dataset_root
from .image_files import check_shapes
from .voc import read_voc

__all__ = ["register_custom_datasets"]

_FORMATS = ("coco", "voc")
_REQUIRED_KEYS = {
    "coco": ("FORMAT", "ANNOTATIONS", "IMAGES"),
    "voc": ("FORMAT", "ANNOTATIONS", "IMAGES", "SPLIT"),
}
_OPTIONAL_KEYS = ("CLASSES",)

logger = logging.getLogger(__name__)

Read = tuple[list[AnnotatedImage], tuple[str, ...]]


@dataclass(frozen=True)
class _Declaration:
    """One checked entry of DATASETS.CUSTOM, paths resolved; split is None for COCO."""

    name: str
    format: str
    annotations: Path
    images: Path
    split: Path | None
    classes: tuple[str, ...] | None

    def read(self) -> Read:
        """The annotated images, and the classes that the annotations know."""
        if self.format == "voc":
            return read_voc(self.annotations, self.images, self.split)
        return read_coco(self.annotations, self.images)


@dataclass(frozen=True)
class _CustomDataset:
    """What DatasetCatalog holds: a declaration with its classes; equal when both are."""

    declaration: _Declaration
    classes: tuple[str, ...]

    def __call__(self) -> list[dict]:
        return self.load()[0]

    def load(self, images: Sequence[AnnotatedImage] | None = None) -> tuple[list[dict], Remarks]:
        """Dataset dicts, and what had to be put right; images saves reading them again."""
        images = self.declaration.read()[0] if images is None else images
        return to_dataset_dicts(images, self.classes, str(self.declaration.images))


def _check_keys(name: str, node: CfgNode) -> None:
    """FORMAT is known, and exactly its keys are there."""
    key = f"DATASETS.CUSTOM.{name}"
    if not isinstance(node, dict):
        raise DatasetError(f"{key} must be a mapping with the keys {_REQUIRED_KEYS['coco']}")
    known = {*_REQUIRED_KEYS["voc"], *_OPTIONAL_KEYS}
    for entry in node:
        if entry not in known:
            raise DatasetError(
                f"Unknown key {key}.{entry}; known: {sorted(known)}.{did_you_mean(entry, known)}"
            )
    if node.get("FORMAT") not in _FORMATS:
        raise DatasetError(f"Set {key}.FORMAT to one of {_FORMATS}, not {node.get('FORMAT')!r}")
    required = _REQUIRED_KEYS[node["FORMAT"]]
    for entry in required:
        if entry not in node:
            raise DatasetError(f"{key} lacks the key {entry}; FORMAT {node['FORMAT']} needs it")
    if "SPLIT" in node and "SPLIT" not in required:
        raise DatasetError(f"Remove {key}.SPLIT: a COCO file is a split; only voc reads this key")


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


def _declared_classes(name: str, node: CfgNode) -> tuple[str, ...] | None:
    """CLASSES of an entry as a tuple, None when it is not given."""
    value = node.get("CLASSES")
    if value is None:
        return None
    strings = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    if not strings or not value or len(set(value)) < len(value):
        raise DatasetError(
            f"DATASETS.CUSTOM.{name}.CLASSES must be a list of different names, not {value!r}"
        )
    return tuple(value)


def _parse_declaration(name: str, node: CfgNode) -> _Declaration:
    """Check one entry of DATASETS.CUSTOM: its keys and values, and that its files are there."""
    _check_keys(name, node)
    voc = node["FORMAT"] == "voc"
    kind = "folder" if voc else "file"
    return _Declaration(
        name=name,
        format=node["FORMAT"],
        annotations=_resolve_path(name, "ANNOTATIONS", node["ANNOTATIONS"], kind),
        images=_resolve_path(name, "IMAGES", node["IMAGES"], "folder"),
        split=_resolve_path(name, "SPLIT", node["SPLIT"], "file") if voc else None,
        classes=_declared_classes(name, node),
    )


def _stated_classes(name: str, declared: dict[str, _Declaration]) -> tuple[str, ...] | None:
    """The class list a set comes with: CLASSES, or what a registered set's metadata says."""
    if name in declared:
        return declared[name].classes
    classes = MetadataCatalog.get(name).get("thing_classes")
    return None if classes is None else tuple(classes)


def _common_classes(
    train: Sequence[str],
    test: Sequence[str],
    declared: dict[str, _Declaration],
    read: dict[str, Read],
) -> tuple[str, ...]:
    """The one class list of all sets used together.

    Stated lists must be equal, order included. Where none is stated, the training sets' classes
    count (the test sets', when nothing is trained on): a class that only a test set has could
    not be learnt.
    """
    stated = {name: _stated_classes(name, declared) for name in (*train, *test)}
    stated = {name: classes for name, classes in stated.items() if classes is not None}
    if stated:
        first, reference = next(iter(stated.items()))
        for name, classes in stated.items():
            if classes != reference:
                raise DatasetError(
                    f"Data sets used together must have the same classes in the same order, but "
                    f"'{first}' has {list(reference)} and '{name}' has {list(classes)}. Set "
                    f"CLASSES of the declared sets alike."
                )
        return reference
    found = [read[name][1] for name in (train or test)]
    if all(classes == found[0] for classes in found):
        return found[0]
    return tuple(sorted({name for classes in found for name in classes}))


def _register(dataset: _CustomDataset) -> None:
    """Put a set into Detectron2's catalogs; the same set twice is one, another one an error."""
    name = dataset.declaration.name
    if name in DatasetCatalog:
        if DatasetCatalog[name] != dataset:
            raise DatasetError(
                f"DATASETS.CUSTOM.{name}: a data set of this name is already registered with "
                "other content; choose another name."
            )
        return
    DatasetCatalog.register(name, dataset)
    MetadataCatalog.get(name).set(
        thing_classes=list(dataset.classes), evaluator_type="coco", voc_ap50=True
    )


def read_declared_classes(cfg: CfgNode) -> tuple[str, ...]:
    """The classes of a config's declared sets; nothing is registered.

    Returns:
        They are empty where a set cannot be read: those of another detector need not be here.
    """
    train, test = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    used = [name for name in (train or test) if name in cfg.DATASETS.CUSTOM]
    stated = [cfg.DATASETS.CUSTOM[name].get("CLASSES") for name in used]
    if any(stated):
        return tuple(next(filter(None, stated)))
    try:
        declared = {name: _parse_declaration(name, cfg.DATASETS.CUSTOM[name]) for name in used}
        read = {name: declaration.read() for name, declaration in declared.items()}
        return _common_classes(used, (), declared, read)
    except (DatasetError, OSError):
        return ()


def register_custom_datasets(cfg: CfgNode) -> None:
    """Check and register the sets of DATASETS.CUSTOM that DATASETS.TRAIN and TEST use.

    The used ones are read entirely, so that whatever is wrong shows before training starts;
    declarations that are not used are not looked at.

    Raises:
        DatasetError: something is misspelt, missing or malformed; names the key or file.
    """
    train, test = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    used = list(dict.fromkeys((*train, *test)))
    custom = cfg.DATASETS.CUSTOM
    for name in used:
        known = {*custom, *DatasetCatalog.list()}
        if name not in known:
            raise DatasetError(
                f"DATASETS.TRAIN or TEST names '{name}', which is neither declared under "
                f"DATASETS.CUSTOM nor registered.{did_you_mean(name, known)}"
            )
    declared = {name: _parse_declaration(name, custom[name]) for name in used if name in custom}
    if not declared:
        return
    read = {name: declaration.read() for name, declaration in declared.items()}
    classes = _common_classes(train, test, declared, read)
    for name, declaration in declared.items():
        dataset = _CustomDataset(declaration, classes)
        dicts, remarks = dataset.load(read[name][0])
        if not any(record["annotations"] for record in dicts):
            raise DatasetError(f"{declaration.annotations}: not one box with an extent is left")
        check_shapes(dicts, cfg)
        remarks.log(name)
        _register(dataset)
        logger.info("%s: %d images, classes %s", name, len(dicts), list(classes))
