# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checks of data sets that Python code registers, Detectron2's own among them.

They come as dataset dicts. What their loader left out or put right cannot be seen any more.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ...utils.errors import D2kdError, DatasetError
from ...utils.text import first_few
from .image_files import read_header
from .suspicion import Suspicion, suspect

__all__ = ["check_registered_sets", "load_registered", "suspicions_of"]

# Images whose headers are read: those of a whole large set would take minutes.
SAMPLED = 100

logger = logging.getLogger(__name__)


def load_registered(split: str, name: str) -> list[dict[str, Any]]:
    """The dataset dicts of a set.

    Args:
        split: "TRAIN" or "TEST", for the message.
        name: of the set.

    Raises:
        DatasetError: its loader failed; names the set, and its file where the metadata know it.
    """
    try:
        return DatasetCatalog.get(name)
    except D2kdError:
        raise
    except Exception as problem:  # registered loaders are anybody's code
        file = MetadataCatalog.get(name).get("json_file")
        where = f" from {file}" if file else ""
        raise DatasetError(
            f"DATASETS.{split} '{name}' cannot be loaded{where}: {type(problem).__name__}: "
            f"{problem}. Correct the file, or what registers the set; a set that is declared under "
            "DATASETS.CUSTOM is read with checks that name the entry."
        ) from problem


def suspicions_of(records: Sequence[dict[str, Any]]) -> Iterator[tuple[BoxMode, Suspicion]]:
    """What the boxes of dataset dicts look like, by the box mode that they state."""
    for mode in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        table = [
            (*item["bbox"], record["width"], record["height"])
            for record in records
            if "width" in record and "height" in record
            for item in record.get("annotations", ())
            if item.get("bbox_mode") == mode and not item.get("iscrowd", 0)
        ]
        numbers = np.asarray(table, dtype=float).reshape(-1, 6)
        found = suspect(numbers[:, :4], numbers[:, 4:], mode == BoxMode.XYXY_ABS)
        if found:
            yield mode, found


def check_registered_sets(cfg: CfgNode, train: bool = True) -> None:
    """Check the sets of DATASETS.TRAIN and TEST that are not declared in the config.

    Args:
        cfg: DATASETS.*, and what a detector is trained on.
        train: whether DATASETS.TRAIN is used.

    Raises:
        DatasetError: a set cannot be loaded, has nothing to learn from, lacks masks or keypoints,
            its boxes or the sizes of its images are not what they are said to be, or its images
            have more than 8 bits a channel.
    """
    for split in ("TRAIN", "TEST") if train else ("TEST",):
        for name in dict.fromkeys(cfg.DATASETS[split]):
            if name not in cfg.DATASETS.CUSTOM:
                where = f"DATASETS.{split} '{name}'"
                _check_records(load_registered(split, name), where, split == "TRAIN", cfg)


def _check_records(records: Any, where: str, trained: bool, cfg: CfgNode) -> None:
    if not isinstance(records, list):  # an iterable data set, which cannot be looked through
        return
    items = [item for record in records for item in record.get("annotations") or ()]
    objects = [item for item in items if not item.get("iscrowd", 0)]
    if items and not objects:
        raise DatasetError(
            f"{where}: all {len(items)} annotations are iscrowd, and those are neither trained on "
            "nor evaluated. Mark only crowds so (some programs mark every run-length encoding)."
        )
    annotated = any("annotations" in record for record in records)
    if annotated and not objects:
        if trained and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            raise DatasetError(f"{where}: not one object is left in {len(records)} images")
        logger.warning("%s: not one object in %d images", where, len(records))
    if trained:
        _check_parts(records, where, cfg)
    _check_boxes(records, where)
    _check_images(records, where)


def _check_parts(records: Sequence[dict[str, Any]], where: str, cfg: CfgNode) -> None:
    """Every object has what the detector's heads are trained on."""
    for key, part in (("MASK_ON", "segmentation"), ("KEYPOINT_ON", "keypoints")):
        lacking = [
            str(record.get("file_name"))
            for record in records
            for item in record.get("annotations") or ()
            if cfg.MODEL[key] and not item.get("iscrowd", 0) and not item.get(part)
        ]
        if lacking:
            raise DatasetError(
                f"{where}: MODEL.{key} is True, but {len(lacking)} objects have no '{part}': "
                f"{first_few(lacking, 3)}. Add it, or set MODEL.{key} to False."
            )


def _check_boxes(records: Sequence[dict[str, Any]], where: str) -> None:
    try:
        found = list(suspicions_of(records))
        flat = [str(record.get("file_name")) for record in records if _has_flat_box(record)]
    except (
        IndexError,
        KeyError,
        TypeError,
        ValueError,
    ):  # records that the doctor names one by one
        return
    for mode, suspicion in found:
        text = f"{where}, bbox_mode {mode.name}: {suspicion.text}"
        if suspicion.fatal:
            raise DatasetError(text)
        logger.warning("%s", text)
    if flat:
        logger.warning(
            "%s: %d images have boxes without width or height, or with a negative one. Detectron2 "
            "leaves these out in silence: %s",
            where,
            len(flat),
            first_few(flat, 3),
        )


def _has_flat_box(record: dict[str, Any]) -> bool:
    for item in record.get("annotations") or ():
        box, mode = item["bbox"], item["bbox_mode"]
        low = (0, 0) if mode == BoxMode.XYWH_ABS else box[:2]
        if mode in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) and not (
            box[2] > low[0] and box[3] > low[1]
        ):
            return True
    return False


def _check_images(records: Sequence[dict[str, Any]], where: str) -> None:
    """Images spread over the set have 8 bits a channel, and their stated size."""
    for record in records[:: max(1, len(records) // SAMPLED)]:
        # Detectron2's paths may be addresses too, which the header's reader does not open.
        if "file_name" not in record or "://" in record["file_name"]:
            continue
        header = read_header(record["file_name"], where)
        stated = (record.get("width", header.width), record.get("height", header.height))
        if tuple(stated) != header.size:
            raise DatasetError(
                f"{where}: {record['file_name']} is {header.width}x{header.height}, annotated as "
                f"{stated[0]}x{stated[1]}. If the images were resized or turned after they were "
                "annotated, change the boxes and the stated sizes alike; if only the stated sizes "
                "are wrong, correct these."
            )
