# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""COCO's metrics for any data set, under the category and image ids of the user's own file."""

import contextlib
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

from ..data.datasets.coco import parse_json
from ..utils.errors import ConfigError, DatasetError

__all__ = ["AnnotatedTasksEvaluator", "build_coco_evaluator", "load_ground_truth"]

# The number of keypoints that pycocotools has sigmas for.
COCO_KEYPOINTS = 17

logger = logging.getLogger(__name__)


class AnnotatedTasksEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator for the tasks that every annotation has the ground truth of.

    A detector may predict more than a data set is annotated with, as a Mask R-CNN does on boxes.
    """

    @property
    def annotated_tasks(self) -> set[str]:
        """Of "bbox", "segm" and "keypoints", those that each annotation can be evaluated for."""
        annotations = self._coco_api.dataset.get("annotations", ())
        tasks = {"bbox"}
        if all(item.get("segmentation") for item in annotations):
            tasks.add("segm")
        if all({"keypoints", "num_keypoints"} <= set(item) for item in annotations):
            tasks.add("keypoints")
        return tasks

    @property
    def num_keypoints(self) -> int:
        """How many keypoints an annotation has; all have as many."""
        return len(next(iter(self._coco_api.anns.values()))["keypoints"]) // 3

    def _tasks_from_predictions(self, predictions: list[dict]) -> list[str]:
        tasks = set(super()._tasks_from_predictions(predictions))
        left_out = sorted(tasks - self.annotated_tasks)
        if left_out:
            logger.warning(
                "%s is not evaluated on '%s': not every annotation there has it",
                " and ".join(left_out),
                self._metadata.name,
            )
        return sorted(tasks & self.annotated_tasks)

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict:
        """Name the classes in the order of their ids, which is that of COCO's results."""
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if ids and class_names:
            class_names = [class_names[ids[key]] for key in sorted(ids)]
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


def build_coco_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> COCOEvaluator:
    """COCO's metrics, with as many detections an image as the detector may make.

    Args:
        cfg: TEST.DETECTIONS_PER_IMAGE and TEST.KEYPOINT_OKS_SIGMAS are read, and whether the
            detector predicts keypoints.
        dataset_name: a registered set.
        output_folder: where predictions and converted annotations go.

    Raises:
        ConfigError: the numbers of keypoints and of their sigmas differ.
        DatasetError: the set has no class names, or its file is not there.
    """
    _ensure_coco_json(dataset_name, output_folder)
    # The fast implementation needs the compiled extension, and is unofficial.
    evaluator = AnnotatedTasksEvaluator(
        dataset_name,
        output_dir=output_folder,
        use_fast_impl=False,
        max_dets_per_image=max(100, cfg.TEST.DETECTIONS_PER_IMAGE),
        kpt_oks_sigmas=list(cfg.TEST.KEYPOINT_OKS_SIGMAS),
    )
    _avoid_id_0(evaluator._coco_api)
    for task, asked in (("segm", cfg.MODEL.MASK_ON), ("keypoints", cfg.MODEL.KEYPOINT_ON)):
        if asked and task not in evaluator.annotated_tasks:
            logger.warning(
                "%s will not be evaluated on '%s': not every annotation there has it",
                task,
                dataset_name,
            )
    if cfg.MODEL.KEYPOINT_ON and "keypoints" in evaluator.annotated_tasks:
        _check_keypoints(cfg, dataset_name, evaluator.num_keypoints)
    return evaluator


def load_ground_truth(dataset_name: str, output_folder: str) -> COCO:
    """The ground truth that COCO's metrics of a set are computed against.

    Args:
        dataset_name: a registered set.
        output_folder: where converted annotations go.

    Raises:
        DatasetError: the set has no class names, or its file is not there.
    """
    _ensure_coco_json(dataset_name, output_folder)
    path = PathManager.get_local_path(MetadataCatalog.get(dataset_name).json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(path)
    _avoid_id_0(api)
    return api


def _avoid_id_0(api: Any) -> None:
    """Renumber annotations: pycocotools counts what matches one with id 0 as matching nothing."""
    if 0 in api.anns:
        for number, item in enumerate(api.dataset["annotations"], 1):
            item["id"] = number
        api.createIndex()


def _check_keypoints(cfg: CfgNode, dataset_name: str, annotated: int) -> None:
    """COCO compares one sigma a keypoint; it asserts so after all images are predicted."""
    predicted = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if predicted != annotated:
        raise ConfigError(
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {predicted}, but the objects of data set "
            f"'{dataset_name}' have {annotated} keypoints: set it to {annotated}"
        )
    sigmas = list(cfg.TEST.KEYPOINT_OKS_SIGMAS)
    if len(sigmas or range(COCO_KEYPOINTS)) != annotated:
        raise ConfigError(
            f"TEST.KEYPOINT_OKS_SIGMAS is {sigmas}, but the objects of data set '{dataset_name}' "
            f"have {annotated} keypoints: set it to {annotated} numbers ([] is COCO's "
            f"{COCO_KEYPOINTS} of a person)"
        )


def _ensure_coco_json(dataset_name: str, output_folder: str) -> None:
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
