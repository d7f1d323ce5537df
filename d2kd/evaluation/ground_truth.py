# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The COCO file that a test set is evaluated against: its own, or written as the set is loaded."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

from ..data.datasets.coco import parse_json
from ..utils.errors import DatasetError

__all__ = ["avoid_id_0", "ensure_coco_json", "load_ground_truth"]


def load_ground_truth(dataset_name: str, output_folder: str) -> COCO:
    """The ground truth that COCO's metrics of a set are computed against.

    Args:
        dataset_name: a registered set.
        output_folder: where converted annotations go.

    Raises:
        DatasetError: the set has no class names, or its file is not there.
    """
    ensure_coco_json(dataset_name, output_folder)
    path = PathManager.get_local_path(MetadataCatalog.get(dataset_name).json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(path)
    avoid_id_0(api)
    return api


def avoid_id_0(api: Any) -> None:
    """Renumber annotations: pycocotools counts what matches one with id 0 as matching nothing."""
    if 0 in api.anns:
        for number, item in enumerate(api.dataset["annotations"], 1):
            item["id"] = number
        api.createIndex()


def ensure_coco_json(dataset_name: str, output_folder: str) -> None:
    """Write a set that has no COCO file as it is loaded, once a process.

    A file left by an earlier run is never trusted: the data may have changed since.
    """
    metadata = MetadataCatalog.get(dataset_name)
    path = metadata.get("json_file")
    if path is not None and PathManager.exists(path):
        return
    if path is not None and not metadata.get("json_is_converted"):
        raise DatasetError(f"Data set '{dataset_name}': there is no annotation file {path}")
    if not metadata.get("thing_classes"):
        raise DatasetError(
            f"Data set '{dataset_name}' has no class names: set "
            f"MetadataCatalog.get('{dataset_name}').thing_classes"
        )
    if path is not None:  # of a folder that was removed since
        del metadata.json_file
    _adopt_category_ids(metadata)
    path = os.path.join(output_folder, f"{dataset_name}_coco_format.json")
    _convert(dataset_name, path)
    metadata.set(json_file=path, json_is_converted=True)


def _convert(dataset_name: str, path: str) -> None:
    """Detectron2's conversion, which moves the keypoints of the records that it is given."""
    # Declared sets are read anew each time; others may be in memory, and be trained on.
    declared = MetadataCatalog.get(dataset_name).get("annotation_file") is not None
    records = [] if declared else DatasetCatalog.get(dataset_name)
    items = [item for record in records for item in record.get("annotations", ())]
    kept = [(item["keypoints"], list(item["keypoints"])) for item in items if "keypoints" in item]
    convert_to_coco_json(dataset_name, path, allow_cached=False)
    for keypoints, values in kept:
        keypoints[:] = values


def _adopt_category_ids(metadata: Metadata) -> None:
    """Let predictions be written under the ids of the COCO file that a declared set is read from.

    A class that only other sets have gets the next free id.
    """
    source = metadata.get("annotation_file")
    if source is None or metadata.get("thing_dataset_id_to_contiguous_id"):
        return
    categories = parse_json(Path(source))["categories"]
    ids = {str(category["name"]): category["id"] for category in reversed(categories)}
    free = max([0, *ids.values()]) + 1
    lacking = [name for name in metadata.thing_classes if name not in ids]
    ids.update({name: free + number for number, name in enumerate(lacking)})
    metadata.thing_dataset_id_to_contiguous_id = {
        ids[name]: index for index, name in enumerate(metadata.thing_classes)
    }
