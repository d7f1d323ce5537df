# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The boxes that a detector finds in a test set, in the form of COCO's result files."""

import json
import math
import os
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from torch import nn

from ...engine import DistillTrainer
from .evaluation_set import EvaluationSet
from .matches import match_detections
from .run_folder import RunFolder
from .scores import score

__all__ = ["Detections", "KeepDetections", "detect", "read_detections"]

# Of two APs in percent that were computed from the same boxes.
_SAME_AP = 1e-6


class Detections(NamedTuple):
    """What one detector finds in one test set.

    Attributes:
        rows: "image_id", "category_id" (of the set), "bbox" (XYWH in pixels) and "score" of each.
        source: where they are from, for the reader.
    """

    rows: list[dict[str, Any]]
    source: str


class KeepDetections(DatasetEvaluator):
    """Keeps every box, and evaluates nothing."""

    def __init__(self, test_set: EvaluationSet):
        self.categories = test_set.categories
        self.rows: list[dict[str, Any]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add the detections in these images."""
        for record, output in zip(inputs, outputs):
            found = instances_to_coco_json(output["instances"].to("cpu"), record["image_id"])
            for row in found:
                row["category_id"] = self.categories[row["category_id"]]
            self.rows += found

    def evaluate(self) -> dict:
        """Nothing: the boxes are in ``rows``."""
        return {}


def detect(cfg: CfgNode, model: nn.Module, test_set: EvaluationSet, source: str) -> Detections:
    """Run a detector on a test set, as it is evaluated.

    Args:
        cfg: of the detector; INPUT.* is read.
        model: with its weights.
        test_set: of DATASETS.TEST.
        source: of the result.
    """
    keeper = KeepDetections(test_set)
    inference_on_dataset(model, DistillTrainer.build_test_loader(cfg, test_set.name), keeper)
    return Detections(keeper.rows, source)


def read_detections(run: RunFolder, test_set: EvaluationSet) -> Detections | None:
    """What the run's own last evaluation wrote, if it is proved to be of the last checkpoint.

    The proof: the file's AP and the AP of every class are those that metrics.json has at the
    checkpoint's iteration.

    Args:
        run: of the detector.
        test_set: of its DATASETS.TEST.

    Returns:
        None where there is no such file, or no such proof.
    """
    folder = os.path.join("inference", test_set.name)
    path = os.path.join(run.folder, folder, "coco_instances_results.json")
    logged = _logged(run, test_set)
    if not logged or not os.path.isfile(path):
        return None
    try:
        with open(path) as file:
            rows = json.load(file)
        found = score(match_detections(test_set, rows, run.cfg.TEST.DETECTIONS_PER_IMAGE))
    except (KeyError, TypeError, ValueError):
        return None
    names = {"AP": found["AP"], "AP50": found["AP50"], "AP75": found["AP75"]}
    names |= {f"AP-{name}": found[f"AP {name}"] for name in test_set.classes}
    same = [_equal(logged.get(name), 100 * float(value[0])) for name, value in names.items()]
    return Detections(rows, f"{folder}, written by the run itself") if all(same) else None


def _logged(run: RunFolder, test_set: EvaluationSet) -> dict[str, float]:
    """The box metrics of the evaluation after the checkpoint's last step; empty if none."""
    row = run.log.rows.get(run.iterations, {})
    for start in (f"{test_set.name}/bbox/", "bbox/"):
        found = {k[len(start) :]: v for k, v in row.items() if k.startswith(start)}
        if found:
            return found
    return {}


def _equal(logged: float | None, found: float) -> bool:
    if logged is None:  # of one class alone, Detectron2 logs no AP of classes
        return True
    if math.isnan(logged) or math.isnan(found):
        return math.isnan(logged) and math.isnan(found)
    return abs(logged - found) <= _SAME_AP
