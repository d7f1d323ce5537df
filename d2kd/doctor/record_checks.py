# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checks that dataset dicts, anybody's code having made them, hold what training reads."""

import math
import reprlib
from collections.abc import Iterator
from numbers import Real
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..data import num_classes
from ..utils.text import first_few
from .finding import Finding, error

__all__ = ["check_records"]

# How many numbers a box has; Detectron2 does not read its other modes.
_BOX_LENGTHS = {BoxMode.XYXY_ABS: 4, BoxMode.XYWH_ABS: 4, BoxMode.XYWHA_ABS: 5}


def check_records(records: list[dict], cfg: CfgNode) -> list[Finding]:
    """Records hold what training reads of them; nothing is found where all do."""
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes") or []
    classes = num_classes(cfg) or len(names) or math.inf
    needed = [
        key
        for key, asked in (
            ("segmentation", cfg.MODEL.MASK_ON),
            ("keypoints", cfg.MODEL.KEYPOINT_ON),
        )
        if asked
    ]
    flaws = [flaw for record in records for flaw in _flaws_of(record, classes, needed)]
    if not flaws:
        return []
    text = f"{len(flaws)} flaws stop the training: {first_few(flaws, 3)}"
    return [error("records", text, "correct the annotations, or what registers the data set")]


def _flaws_of(record: dict, classes: float, needed: list[str]) -> Iterator[str]:
    """What stops the training on an image; needed: further keys that annotations must have."""
    where = record.get("file_name") or f"the image with id {record.get('image_id')}"
    lacking = [key for key in ("file_name", "annotations") if record.get(key) is None]
    if lacking:
        yield f"{where} has no {' and no '.join(lacking)}"
    for item in record.get("annotations") or ():
        # Training leaves crowds out.
        flaw = "" if item.get("iscrowd", 0) else _flaw_of(item, classes, needed)
        if flaw:
            yield f"{where} {flaw}"


def _flaw_of(item: dict, classes: float, needed: list[str]) -> str:
    """What is wrong with an annotation; empty if nothing is."""
    lacking = [key for key in ("bbox", "bbox_mode", "category_id", *needed) if key not in item]
    if lacking:
        return f"has an annotation without {', '.join(lacking)}"
    category, box, mode = (item[key] for key in ("category_id", "bbox", "bbox_mode"))
    if not isinstance(category, Real) or not 0 <= float(category) < classes:
        return f"has category_id {category!r}, of 0 to {classes - 1} for {classes} classes"
    if mode not in _BOX_LENGTHS or not _are_finite(box, _BOX_LENGTHS[mode]):
        return f"has the bbox {reprlib.repr(box)} of bbox_mode {mode!r}"
    if mode != BoxMode.XYXY_ABS and not isinstance(box, (list, tuple)):
        return f"has the bbox {box!r}: Detectron2 converts lists and tuples"
    return ""


def _are_finite(values: Any, count: int) -> bool:
    try:
        return len(values) == count and all(map(math.isfinite, values))
    except (TypeError, OverflowError):  # of what is no list or no number; of 10**400
        return False
