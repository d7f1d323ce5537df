# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""COCO's metrics for any data set, under the category and image ids of the user's own file."""

import itertools
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.file_io import PathManager

from ..utils.errors import ConfigError
from .coco_evaluators import check_coco_evaluator, evaluate_results
from .ground_truth import avoid_id_0, ensure_coco_json

__all__ = ["AnnotatedTasksEvaluator", "build_coco_evaluator"]

# The number of keypoints that pycocotools has sigmas for.
COCO_KEYPOINTS = 17
PYCOCOTOOLS = "pycocotools"

logger = logging.getLogger(__name__)


class AnnotatedTasksEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator for the tasks that every annotation has the ground truth of.

    A detector may predict more than a data set is annotated with, as a Mask R-CNN does on boxes.
    """

    def __init__(self, dataset_name: str, *args: Any, program: str = PYCOCOTOOLS, **kwargs: Any):
        """
        Args:
            dataset_name, args, kwargs: of COCOEvaluator.
            program: that computes the metrics, TEST.COCO_EVALUATOR.
        """
        # Detectron2's own fast implementation gives way in silence where more than 100 detections
        # count.
        super().__init__(dataset_name, *args, use_fast_impl=False, **kwargs)
        self._program = program

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
    def classes(self) -> list[str]:
        """Names of the classes; empty if they are not known."""
        return list(self._metadata.get("thing_classes", ()))

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

    def _eval_predictions(
        self, predictions: list[dict], img_ids: Sequence[int] | None = None
    ) -> None:
        """Detectron2's own with pycocotools, which it offers no way to replace, or the same."""
        if self._program == PYCOCOTOOLS:
            super()._eval_predictions(predictions, img_ids)
            return
        results = list(itertools.chain(*(x["instances"] for x in predictions)))
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id", {})
        file_ids = {index: file_id for file_id, index in ids.items()}
        for result in results if ids else ():
            result["category_id"] = file_ids[result["category_id"]]
        self._write_results(results)
        if not self._do_evaluation:
            logger.info("'%s' has no annotations to evaluate on", self._metadata.name)
            return
        for task in self._tasks_from_predictions(results):
            found = self._compute(task, results, img_ids) if results else None
            self._results[task] = self._derive_coco_results(found, task, self.classes)

    def _write_results(self, results: list[dict]) -> None:
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            with PathManager.open(path, "w") as file:
                json.dump(results, file)

    def _compute(self, task: str, results: list[dict], img_ids: Sequence[int] | None) -> Any:
        return evaluate_results(
            self._program,
            self._coco_api,
            results,
            task,
            self._max_dets_per_image,
            self._kpt_oks_sigmas,
            img_ids,
        )

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict:
        """Name the classes in the order of their ids, which is that of COCO's results.

        Without any detection the metrics of classes are NaN, as the others are: Detectron2 would
        leave them out, and TEST.BEST_METRIC may be one of them.
        """
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if ids and class_names:
            class_names = [class_names[ids[key]] for key in sorted(ids)]
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None and class_names and len(class_names) > 1:
            results.update({f"AP-{name}": float("nan") for name in class_names})
        return results


def build_coco_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> COCOEvaluator:
    """COCO's metrics, with as many detections an image as the detector may make.

    Args:
        cfg: TEST.COCO_EVALUATOR, TEST.DETECTIONS_PER_IMAGE and TEST.KEYPOINT_OKS_SIGMAS are read,
            and whether the detector predicts keypoints.
        dataset_name: a registered set.
        output_folder: where predictions and converted annotations go.

    Raises:
        ConfigError: the numbers of keypoints and of their sigmas differ, or the program of
            TEST.COCO_EVALUATOR is not installed.
        DatasetError: the set has no class names, or its file is not there.
    """
    check_coco_evaluator(cfg.TEST.COCO_EVALUATOR)
    ensure_coco_json(dataset_name, output_folder)
    evaluator = AnnotatedTasksEvaluator(
        dataset_name,
        output_dir=output_folder,
        program=cfg.TEST.COCO_EVALUATOR,
        max_dets_per_image=max(100, cfg.TEST.DETECTIONS_PER_IMAGE),
        kpt_oks_sigmas=list(cfg.TEST.KEYPOINT_OKS_SIGMAS),
    )
    avoid_id_0(evaluator._coco_api)
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
