# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The demo's picture: ground truth and each detector's detections side by side."""

from pathlib import Path

import cv2
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.structures import BoxMode

from experiments.plots import Detections, detections_grid

__all__ = ["draw_detections"]

PICTURES = 4
SCORE_SHOWN = 0.5


def draw_detections(test_set: str, detectors: dict[str, CfgNode], path: Path) -> None:
    """Write a picture of a few test images: a column of ground truth, and one of each detector.

    Args:
        test_set: name of the data set.
        detectors: title -> config of a trained detector, for plain Detectron2.
        path: the picture to write.
    """
    records = choose_images(DatasetCatalog.get(test_set))
    images = [cv2.imread(record["file_name"]) for record in records]
    columns = {"ground truth": [ground_truth(record) for record in records]}
    for title, cfg in detectors.items():
        columns[title] = detect(cfg, images)
    names = MetadataCatalog.get(test_set).thing_classes
    detections_grid([image[:, :, ::-1] for image in images], columns, names, path)


def choose_images(records: list[dict]) -> list[dict]:
    """Choose the first images with 4 to 7 objects."""
    fitting = [record for record in records if 4 <= len(record["annotations"]) <= 7]
    return (fitting + records)[:PICTURES]


def ground_truth(record: dict) -> Detections:
    objects = record["annotations"]
    boxes = [BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
    return Detections(boxes, [o["category_id"] for o in objects])


def detect(cfg: CfgNode, images: list) -> list[Detections]:
    """Detect with plain Detectron2 in BGR images; scores below SCORE_SHOWN are left out."""
    predictor = DefaultPredictor(cfg)
    found = []
    for image in images:
        instances = predictor(image)["instances"].to("cpu")
        sure = instances[instances.scores >= SCORE_SHOWN]
        classes, scores = sure.pred_classes.numpy(), sure.scores.numpy()
        found.append(Detections(sure.pred_boxes.tensor.numpy(), classes, scores))
    return found
