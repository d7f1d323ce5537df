# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The detector's number of classes, and whether the data sets have as many."""

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import get_value
from ..config.detectors import find_detector
from ..utils.errors import DatasetError

__all__ = ["check_num_classes", "num_classes", "num_classes_key"]


def num_classes_key(cfg: CfgNode) -> str | None:
    """The key of the detector's number of classes; None if the detector table has no row for it."""
    row = find_detector(cfg)
    return row.num_classes_key if row else None


def num_classes(cfg: CfgNode) -> int | None:
    """The number of classes cfg's detector predicts; None if its meta-architecture is unknown."""
    key = num_classes_key(cfg)
    return get_value(cfg, key) if key else None


def check_num_classes(cfg: CfgNode) -> None:
    """Compare the detector's number of classes with every data set of DATASETS.TRAIN and TEST.

    Raises:
        DatasetError: they differ; the message says which key to set to what.
    """
    expected = num_classes(cfg)
    if expected is None:
        return
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        metadata = MetadataCatalog.get(name)
        if not hasattr(metadata, "thing_classes"):
            DatasetCatalog.get(name)  # COCO's loader learns the classes from the file
        classes = metadata.get("thing_classes")
        if classes is not None and len(classes) != expected:
            raise DatasetError(
                f"{num_classes_key(cfg)} is {expected}, but data set '{name}' has {len(classes)} "
                f"classes ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}). "
                f"Set {num_classes_key(cfg)} to {len(classes)}."
            )
