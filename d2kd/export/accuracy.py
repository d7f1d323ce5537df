# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""COCO's box AP of several detectors on the same images."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator

import torch
from detectron2.config import CfgNode

from ..data import build_mapper
from ..data.datasets.registered import load_registered
from ..evaluation.coco import build_coco_evaluator

__all__ = ["measure_ap"]


def measure_ap(
    cfg: CfgNode, name: str, detectors: dict[str, Callable], count: int
) -> dict[str, float]:
    """The box AP of each detector on the first images of a set.

    Args:
        cfg: of the detectors; INPUT.*_TEST and TEST.DETECTIONS_PER_IMAGE are read.
        name: of a registered set.
        detectors: name -> function from batched_inputs to Detectron2's outputs.
        count: of images, at most.

    Returns:
        dict: name -> AP in percent; NaN where the images have no ground truth.
    """
    records, mapper = load_registered("TEST", name)[:count], build_mapper(cfg, is_train=False)
    ids = [record["image_id"] for record in records]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        evaluators = {x: build_coco_evaluator(cfg, name, folder) for x in detectors}
        for evaluator in evaluators.values():
            evaluator.reset()
        for record in records:
            inputs = [mapper(record)]
            for x, detect in detectors.items():
                with torch.no_grad():
                    evaluators[x].process(inputs, detect(inputs))
        found = {x: evaluator.evaluate(img_ids=ids) for x, evaluator in evaluators.items()}
    return {x: results.get("bbox", {}).get("AP", float("nan")) for x, results in found.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tables that pycocotools prints and Detectron2 logs."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
