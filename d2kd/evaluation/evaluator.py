# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Evaluators by data set: COCO metrics, and VOC AP50 beside them for our own sets."""

import itertools
import logging
import os
from collections import OrderedDict

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
)
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..utils.errors import DatasetError
from .voc_ap import voc_average_precision

__all__ = ["VOCAP50Evaluator", "boxes_of", "build_evaluator"]

logger = logging.getLogger(__name__)


def boxes_of(records: list[dict], category: int) -> dict[str, np.ndarray]:
    """The ground truth of one class, as the arguments gt_* of voc_average_precision."""
    rows = [
        (BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS), record["image_id"])
        + (bool(item.get("iscrowd", 0)),)
        for record in records
        for item in record["annotations"]
        if item["category_id"] == category
    ]
    boxes, images, ignore = zip(*rows) if rows else ((), (), ())
    return {
        "gt_boxes": np.array(boxes, dtype=float).reshape(-1, 4),
        "gt_images": np.array([str(image) for image in images], dtype=str),
        "gt_ignore": np.array(ignore, dtype=bool),
    }


class VOCAP50Evaluator(DatasetEvaluator):
    """VOC AP at IoU 0.5 on any box data set; "iscrowd" (VOC's "difficult") objects are ignored."""

    def __init__(self, dataset_name: str, distributed: bool = True):
        """
        Args:
            dataset_name: a registered set whose metadata has thing_classes.
            distributed: gather the predictions of all processes; else evaluate this one's.
        """
        self._classes = MetadataCatalog.get(dataset_name).thing_classes
        records = DatasetCatalog.get(dataset_name)
        self._truth = [boxes_of(records, index) for index in range(len(self._classes))]
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for record, output in zip(inputs, outputs):
            instances = output["instances"]
            boxes = instances.pred_boxes.tensor.detach().cpu().double().numpy()
            scores = instances.scores.detach().cpu().double().numpy()
            categories = instances.pred_classes.detach().cpu().numpy()
            images = np.full(len(boxes), str(record["image_id"]))
            self._predictions.append((boxes, scores, categories, images))

    def evaluate(self) -> dict:
        """{"voc": {"AP50": mean over classes, "AP50-<class>": ...}} in percent; {} off rank 0."""
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            return {}
        boxes, scores, categories, images = map(np.concatenate, zip(*predictions))
        results = OrderedDict(AP50=float("nan"))
        for index, (name, truth) in enumerate(zip(self._classes, self._truth)):
            rows = categories == index
            ap = voc_average_precision(boxes[rows], scores[rows], images[rows], **truth)
            results[f"AP50-{name}"] = 100 * ap
        known = [value for value in results.values() if not np.isnan(value)]
        if known:
            results["AP50"] = float(np.mean(known))
        logger.info("VOC AP at IoU 0.5:\n%s", create_small_table(results))
        return {"voc": results}


def _ensure_coco_json(dataset_name: str, output_folder: str) -> None:
    """Write the set as loaded (clipped, no degenerate boxes) for COCOEvaluator, once a process.

    A file left by an earlier run is never trusted: the data may have changed since.
    """
    metadata = MetadataCatalog.get(dataset_name)
    path = metadata.get("json_file")
    if path is None:
        path = os.path.join(output_folder, f"{dataset_name}_coco_format.json")
    elif PathManager.exists(path):
        return
    convert_to_coco_json(dataset_name, path, allow_cached=False)
    metadata.json_file = path


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """The evaluator for a data set, chosen by its metadata's evaluator_type.

    Args:
        cfg: OUTPUT_DIR is read, when no output_folder is given.
        dataset_name: a registered set.
        output_folder: where predictions and converted annotations go.

    Raises:
        DatasetError: the set's evaluator_type is not one for boxes.
    """
    output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    if kind != "coco":
        raise DatasetError(
            f"Data set '{dataset_name}' has the evaluator_type {kind!r}; boxes are evaluated for "
            "'coco' and 'pascal_voc'. Set MetadataCatalog.get(name).evaluator_type, or declare "
            "the set under DATASETS.CUSTOM."
        )
    # The fast implementation needs the compiled extension, and is unofficial.
    if not metadata.get("voc_ap50"):
        return COCOEvaluator(dataset_name, output_dir=output_folder, use_fast_impl=False)
    _ensure_coco_json(dataset_name, output_folder)
    coco = COCOEvaluator(dataset_name, output_dir=output_folder, use_fast_impl=False)
    return DatasetEvaluators([coco, VOCAP50Evaluator(dataset_name)])
