# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Faster programs that compute COCO's metrics, in place of pycocotools (TEST.COCO_EVALUATOR)."""

import copy
import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets

from ..utils.errors import ConfigError

__all__ = ["check_coco_evaluator", "evaluate_results"]

KEY = "TEST.COCO_EVALUATOR"

logger = logging.getLogger(__name__)


def check_coco_evaluator(name: str) -> None:
    """Is the program of TEST.COCO_EVALUATOR installed?

    Raises:
        ConfigError: says what to install.
    """
    other = f", or set {KEY} to 'pycocotools'"
    if name == "faster_coco_eval" and importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"{KEY} is {name!r}, and the package faster-coco-eval is not installed: run "
            f"pip install faster-coco-eval (d2kd's extra 'eval'){other}"
        )
    if name == "detectron2" and _detectron2_class() is None:
        raise ConfigError(
            f"{KEY} is {name!r}, and this Detectron2 was built without its compiled extension "
            f"(detectron2._C): build it with a C++ compiler, as Detectron2's page says{other}"
        )


def evaluate_results(
    name: str,
    truth: Any,
    results: Sequence[dict],
    task: str,
    max_detections: Sequence[int],
    sigmas: Sequence[float] = (),
    image_ids: Sequence[int] | None = None,
) -> Any:
    """What pycocotools' COCOeval gives after ``summarize``, by another program.

    Args:
        name: TEST.COCO_EVALUATOR, other than "pycocotools".
        truth: pycocotools' COCO of the ground truth.
        results: detections in COCO's format; not empty.
        task: "bbox", "segm" or "keypoints".
        max_detections: the limits on detections of an image; the last one is AP's. Of boxes and
            masks.
        sigmas: of the keypoints; empty for COCO's.
        image_ids: images to evaluate on; None for all.

    Returns:
        an object with "stats" and with "precision" in its ``eval``, as COCOeval has them.
    """
    # Programs add fields to the detections. With their boxes, masks would be small or large by the
    # area of the box.
    results = [{k: v for k, v in x.items() if task != "segm" or k != "bbox"} for x in results]
    evaluator = _create(name, truth, results, task)
    params = evaluator.params
    if task == "keypoints":
        if len(sigmas):
            params.kpt_oks_sigmas = np.array(sigmas)
    else:
        params.maxDets = list(max_detections)
    if image_ids is not None:
        params.imgIds = list(image_ids)
    evaluator.evaluate()
    evaluator.accumulate()
    # Detectron2's own summary, which knows other limits than COCO's.
    COCOevalMaxDets.summarize(evaluator)
    return evaluator


def _create(name: str, truth: Any, results: list[dict], task: str) -> Any:
    if name == "detectron2":
        return _detectron2_class()(truth, truth.loadRes(results), task)
    from faster_coco_eval import COCO, COCOeval_faster

    faster = COCO(copy.copy(truth.dataset))
    return COCOeval_faster(faster, faster.loadRes(results), task, print_function=logger.debug)


def _detectron2_class() -> Any:
    """Detectron2's COCOeval_opt; None where it was built without it."""
    try:
        from detectron2.evaluation.fast_eval_api import COCOeval_opt
    except ImportError:
        return None
    return COCOeval_opt
