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

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...utils.errors import DatasetError
from ...utils.text import did_you_mean
from .annotated_image import AnnotatedImage, ReadSet
from .dataset_dicts import to_dataset_dicts
from .declaration import Declaration, parse_declaration
from .image_files import check_shapes
from .remarks import Remarks
from .required_parts import Keypoints, check_required, keypoints_of

__all__ = ["register_custom_datasets"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _CustomDataset:
    """What DatasetCatalog holds: a declaration with its classes; equal when both are."""

    declaration: Declaration
    classes: tuple[str, ...]

    def __call__(self) -> list[dict]:
        return self.load()[0]

    def load(
        self, images: Sequence[AnnotatedImage] | None = None, detections: int = 0
    ) -> tuple[list[dict], Remarks]:
        """Dataset dicts and remarks.

        Args:
            images: what the declaration reads, to save reading it again.
            detections: TEST.DETECTIONS_PER_IMAGE.
        """
        return to_dataset_dicts(
            self.declaration.read().images if images is None else images,
            self.classes,
            str(self.declaration.images),
            corners=self.declaration.format == "voc",
            detections=detections,
        )


def _stated_classes(name: str, declared: dict[str, Declaration]) -> tuple[str, ...] | None:
    """The class list a set comes with: CLASSES, or what a registered set's metadata says."""
    if name in declared:
        return declared[name].classes
    classes = MetadataCatalog.get(name).get("thing_classes")
    return None if classes is None else tuple(classes)


def _common_classes(
    train: Sequence[str],
    test: Sequence[str],
    declared: dict[str, Declaration],
    read: dict[str, ReadSet],
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
    found = [read[name].classes for name in (train or test)]
    if all(classes == found[0] for classes in found):
        return found[0]
    return tuple(sorted({name for classes in found for name in classes}))


def _register(dataset: _CustomDataset, keypoints: Keypoints | None) -> None:
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
    metadata = MetadataCatalog.get(name)
    metadata.set(thing_classes=list(dataset.classes), evaluator_type="coco", voc_ap50=True)
    if keypoints:
        metadata.set(
            keypoint_names=list(keypoints.names), keypoint_flip_map=list(keypoints.flip or ())
        )
    if dataset.declaration.format == "coco":  # for its category ids, in results files
        metadata.annotation_file = str(dataset.declaration.annotations)


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
        declared = {name: parse_declaration(name, cfg.DATASETS.CUSTOM[name]) for name in used}
        read = {name: declaration.read() for name, declaration in declared.items()}
        return _common_classes(used, (), declared, read)
    except (DatasetError, OSError):
        return ()


def _parse_used(cfg: CfgNode) -> dict[str, Declaration]:
    """The declarations that DATASETS.TRAIN and TEST use, by name."""
    custom, declared = cfg.DATASETS.CUSTOM, {}
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        known = {*custom, *DatasetCatalog.list()}
        if name not in known:
            raise DatasetError(
                f"DATASETS.TRAIN or TEST names '{name}', which is neither declared under "
                f"DATASETS.CUSTOM nor registered.{did_you_mean(name, known)}"
            )
        if name in custom:
            declared[name] = parse_declaration(name, custom[name])
    return declared


def _check_not_empty(declaration: Declaration, read: ReadSet, dicts: list[dict]) -> None:
    """A training set has a box to learn from, any set one to compare with."""
    where = declaration.annotations
    objects = [item for image in read.images for item in image.objects]
    if objects and all(item.ignore for item in objects):
        word = "marked <difficult>" if declaration.format == "voc" else "iscrowd"
        raise DatasetError(
            f"{where}: all {len(objects)} annotations are {word}, and those are neither trained on "
            "nor evaluated. Mark only crowds so (some programs mark every run-length encoding)."
        )
    if all(item["iscrowd"] for record in dicts for item in record["annotations"]):
        raise DatasetError(f"{where}: not one box with an extent is left")


def register_custom_datasets(cfg: CfgNode) -> dict[str, Remarks]:
    """Check and register the sets of DATASETS.CUSTOM that DATASETS.TRAIN and TEST use.

    The used ones are read entirely, so that whatever is wrong shows before training starts;
    declarations that are not used are not looked at.

    Returns:
        What was suspicious or repaired in each declared set, by its name; it is logged too.

    Raises:
        DatasetError: something is misspelt, missing or malformed; names the key or file.
    """
    declared = _parse_used(cfg)
    if not declared:
        return {}
    read = {name: declaration.read() for name, declaration in declared.items()}
    classes = _common_classes(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, declared, read)
    found = {}
    for name, declaration in declared.items():
        dataset = _CustomDataset(declaration, classes)
        images = read[name].images
        dicts, found[name] = dataset.load(images, cfg.TEST.DETECTIONS_PER_IMAGE)
        _check_not_empty(declaration, read[name], dicts)
        check_shapes(dicts, cfg)
        keypoints = keypoints_of(declaration, read[name])
        if name in cfg.DATASETS.TRAIN:
            check_required(declaration, images, keypoints, cfg)
        found[name].log(name)
        _register(dataset, keypoints)
        logger.info("%s: %d images, classes %s", name, len(dicts), list(classes))
    return found
