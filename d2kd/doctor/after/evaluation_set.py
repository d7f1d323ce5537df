# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A test set as COCO's metrics read it, whatever format it was declared in."""

from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...evaluation import check_test_sets
from ...evaluation.ground_truth import load_ground_truth
from ...utils.errors import DatasetError

__all__ = ["EvaluationSet", "load_evaluation_sets"]

# Kinds of evaluator whose sets have boxes of every object of every class.
_KINDS = ("coco", "coco_panoptic_seg", "pascal_voc", "cityscapes_instance")


@dataclass(frozen=True)
class EvaluationSet:
    """Images and objects.

    Attributes:
        name: in DATASETS.TEST.
        truth: pycocotools' COCO of the ground truth.
        classes: names, by the detector's class index.
        categories: the category id of each class.
        kind: its evaluator_type.
    """

    name: str
    truth: Any
    classes: tuple[str, ...]
    categories: tuple[int, ...]
    kind: str

    @property
    def images(self) -> list[int]:
        """Image ids in COCOeval's order."""
        return sorted(self.truth.getImgIds())


def load_evaluation_sets(cfg: CfgNode, folder: str) -> list[EvaluationSet]:
    """Every set of DATASETS.TEST, checked as before a training.

    Args:
        cfg: of a run; its sets are registered.
        folder: where sets in other formats are written as COCO files.

    Raises:
        ConfigError: DATASETS.TEST is empty.
        DatasetError: a set cannot be evaluated, or has no objects.
    """
    if not cfg.DATASETS.TEST:
        raise DatasetError(
            "DATASETS.TEST is empty, so there is nothing to compare the runs on: add "
            "DATASETS.TEST '(\"a_set\",)' to the command"
        )
    for name in cfg.DATASETS.TEST:
        kind = MetadataCatalog.get(name).get("evaluator_type")
        if kind not in _KINDS:
            raise DatasetError(
                f"DATASETS.TEST '{name}' has the evaluator_type {kind!r}: COCO's box metrics, by "
                f"which the runs are compared, are for {', '.join(_KINDS)}"
            )
    check_test_sets(cfg, folder)
    return [_load(name, folder) for name in cfg.DATASETS.TEST]


def _load(name: str, folder: str) -> EvaluationSet:
    truth, metadata = load_ground_truth(name, folder), MetadataCatalog.get(name)
    objects = [x for x in truth.dataset.get("annotations", ()) if not x.get("iscrowd", 0)]
    if not objects:
        raise DatasetError(
            f"DATASETS.TEST '{name}' has no annotated object: without ground truth there is no AP. "
            "Set DATASETS.TEST to a set with annotations"
        )
    classes = tuple(metadata.thing_classes)
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    by_index = {index: key for key, index in ids.items()} if ids else {}
    categories = tuple(by_index.get(i, i) for i in range(len(classes)))
    return EvaluationSet(name, truth, classes, categories, metadata.get("evaluator_type"))
