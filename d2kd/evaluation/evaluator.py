# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Evaluators by data set: COCO metrics, and VOC AP50 beside them for our own sets."""

import importlib.util
import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from ..config.detectors import is_known_dense, plain_facts
from ..utils.errors import DatasetError
from .coco import build_coco_evaluator
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
    """VOC AP at IoU 0.5 on any box data set; "iscrowd" (VOC's "difficult") objects are ignored.

    Attributes:
        classes: names of the classes, by index.
    """

    def __init__(self, dataset_name: str, distributed: bool = True):
        """
        Args:
            dataset_name: a registered set whose metadata has thing_classes.
            distributed: gather the predictions of all processes; else evaluate this one's.
        """
        self.classes = MetadataCatalog.get(dataset_name).thing_classes
        records = DatasetCatalog.get(dataset_name)
        self._truth = [boxes_of(records, index) for index in range(len(self.classes))]
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Drop all predictions."""
        self._predictions: list[tuple[np.ndarray, ...]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add the predictions for these images."""
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
        for index, (name, truth) in enumerate(zip(self.classes, self._truth)):
            rows = categories == index
            ap = voc_average_precision(
                boxes[rows],
                scores[rows],
                images[rows],
                truth["gt_boxes"],
                truth["gt_images"],
                truth["gt_ignore"],
            )
            results[f"AP50-{name}"] = 100 * ap
        known = [value for value in results.values() if not np.isnan(value)]
        if known:
            results["AP50"] = float(np.mean(known))
        logger.info("VOC AP at IoU 0.5:\n%s", create_small_table(results))
        return {"voc": results}


# evaluator_type -> the package that its metric needs; Detectron2 imports some after all images are
# predicted.
_PACKAGES = {
    "lvis": "lvis",
    "cityscapes_instance": "cityscapesscripts",
    "cityscapes_sem_seg": "cityscapesscripts",
    "coco_panoptic_seg": "panopticapi",
}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """The evaluators of a data set's evaluator_type that the detector gives outputs for.

    Args:
        cfg: OUTPUT_DIR is read when no output_folder is given, what the detector predicts, and
            TEST.*.
        dataset_name: a registered set.
        output_folder: where predictions and converted annotations go.

    Raises:
        ConfigError: TEST.KEYPOINT_OKS_SIGMAS does not suit the set.
        DatasetError: the evaluator_type is unknown, needs a package that is not installed, or
            none of its metrics is for what the detector predicts.
    """
    output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _BUILDERS:
        raise DatasetError(
            f"Data set '{dataset_name}' has the evaluator_type {kind!r}: set "
            f"MetadataCatalog.get('{dataset_name}').evaluator_type to one of {sorted(_BUILDERS)}, "
            "or declare the set under DATASETS.CUSTOM."
        )
    outputs = plain_facts(cfg).predicts
    builders = {
        output: build
        for output, build in _BUILDERS[kind].items()
        if outputs is None or output in outputs
    }
    if not builders:
        raise DatasetError(
            f"Data set '{dataset_name}' is evaluated by {sorted(_BUILDERS[kind])} "
            f"(evaluator_type {kind!r}), but MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE} predicts {sorted(outputs)}: take it out of "
            "DATASETS.TEST."
        )
    evaluators = [build(cfg, dataset_name, output_folder) for build in builders.values()]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _instances(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    coco = build_coco_evaluator(cfg, name, folder)
    if not MetadataCatalog.get(name).get("voc_ap50"):
        return coco
    return DatasetEvaluators([coco, VOCAP50Evaluator(name)])


def _cityscapes(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    """Cityscapes' own metric is of masks; a detector of boxes gets COCO's."""
    if is_known_dense(cfg) or not cfg.MODEL.MASK_ON:
        return build_coco_evaluator(cfg, name, folder)
    _need_package(name, "cityscapes_instance")
    return CityscapesInstanceEvaluator(name)


def _cityscapes_sem_seg(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    _need_package(name, "cityscapes_sem_seg")
    return CityscapesSemSegEvaluator(name)


def _lvis(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    _need_package(name, "lvis")
    # 300 is LVIS' own limit.
    limit = max(300, cfg.TEST.DETECTIONS_PER_IMAGE)
    return LVISEvaluator(name, output_dir=folder, max_dets_per_image=limit)


def _panoptic(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    _need_package(name, "coco_panoptic_seg")
    return COCOPanopticEvaluator(name, folder)


def _sem_seg(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return SemSegEvaluator(name, output_dir=folder)


def _pascal_voc(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return PascalVOCDetectionEvaluator(name)


_Build = Callable[[CfgNode, str, str], DatasetEvaluator]
# evaluator_type -> output of the detector -> what evaluates it, as Detectron2's train_net.py does.
_BUILDERS: dict[str, dict[str, _Build]] = {
    "coco": {"instances": _instances, "proposals": build_coco_evaluator},
    "coco_panoptic_seg": {
        "instances": build_coco_evaluator,
        "sem_seg": _sem_seg,
        "panoptic_seg": _panoptic,
    },
    "sem_seg": {"sem_seg": _sem_seg},
    "lvis": {"instances": _lvis, "proposals": _lvis},
    "cityscapes_instance": {"instances": _cityscapes},
    "cityscapes_sem_seg": {"sem_seg": _cityscapes_sem_seg},
    "pascal_voc": {"instances": _pascal_voc},
}


def _need_package(dataset_name: str, kind: str) -> None:
    package = _PACKAGES[kind]
    if importlib.util.find_spec(package) is None:
        raise DatasetError(
            f"Data set '{dataset_name}' (evaluator_type {kind!r}) is evaluated with the package "
            f"{package}, which is not installed: install it, or take the set out of DATASETS.TEST."
        )
