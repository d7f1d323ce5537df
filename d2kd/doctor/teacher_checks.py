# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Whether the teacher knows what it is to teach: its class names, its boxes on training images."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou

from ..data.class_names import class_names, same_class_names
from ..modeling import Distiller
from ..modeling.build import read_teacher_config
from ..modeling.class_names import compares_classes, teacher_class_names
from .finding import Finding, error, ok, warning

__all__ = ["Agreement", "check_agreement", "check_classes_of_pair", "compare"]

# A teacher below these on images like those it was trained on is not the one it was thought to be.
LEAST_RECALL, LEAST_AGREEMENT = 0.5, 0.7
IOU, SCORE = 0.5, 0.3
MOST_IMAGES, MOST_SECONDS = 16, 6.0


def check_classes_of_pair(cfg: CfgNode, model: Distiller) -> Finding:
    """Say whose class names are known; where both are, the builder has compared them."""
    requires, ours = model.required.requires, class_names(cfg)
    theirs = teacher_class_names(cfg, read_teacher_config(cfg), model.teacher.classes)
    if not compares_classes(cfg, requires):
        return ok("class names", "no enabled loss compares class by class")
    if ours and theirs:
        return ok("class names", f"the {len(ours)} classes have the same names in both detectors")
    whose = "the teacher's checkpoint and the sets of its config" if ours else "the data sets"
    return ok(
        "class names",
        f"{whose} do not tell the class names: whether both detectors mean the same is not known",
        "DISTILL.TEACHER.CLASSES, set to the teacher's names, lets them be compared",
    )


@dataclass
class Agreement:
    """How a detector's boxes agree with the ground truth.

    Attributes:
        objects: ground-truth boxes.
        found: of these, with a detection at IoU 0.5.
        right: of these, whose best detection has their class.
        confused: (class, detected class) -> number.
        images: looked at.
    """

    objects: int = 0
    found: int = 0
    right: int = 0
    confused: Counter[tuple[int, int]] = field(default_factory=Counter)
    images: int = 0

    @property
    def recall(self) -> float:
        return self.found / max(self.objects, 1)

    @property
    def agreement(self) -> float:
        return self.right / max(self.found, 1)

    def add(self, boxes: torch.Tensor, classes: list[int], detections: Instances) -> None:
        """Count one image.

        Args:
            boxes: (B, 4) ground truth.
            classes: of each.
            detections: with "pred_boxes", "scores" and "pred_classes", in the same pixels.
        """
        self.images += 1
        self.objects += len(classes)
        kept = detections[detections.scores >= SCORE]
        if not len(kept) or not classes:
            return
        order = kept[kept.scores.argsort(descending=True)]
        near = pairwise_iou(Boxes(boxes), order.pred_boxes) >= IOU
        for row, label in zip(near, classes):
            if row.any():
                predicted = int(order.pred_classes[row.int().argmax()])
                self.found += 1
                self.right += predicted == label
                if predicted != label:
                    self.confused[label, predicted] += 1


def compare(cfg: CfgNode, model: Distiller) -> Agreement | None:
    """Run the teacher as it is evaluated, on training images of the student.

    Args:
        cfg: the student's.
        model: with the teacher, whose own INPUT keys are used.

    Returns:
        None where the teacher gives no boxes.
    """
    teacher_cfg, teacher = read_teacher_config(cfg), model.teacher.model
    mapper, found = DatasetMapper(teacher_cfg, is_train=False), Agreement()
    until = time.perf_counter() + MOST_SECONDS
    records = [r for r in DatasetCatalog.get(cfg.DATASETS.TRAIN[0]) if _truth(r)[1]]
    step = max(len(records) // MOST_IMAGES, 1)
    for record in records[::step][:MOST_IMAGES]:
        with torch.no_grad():
            output = teacher([mapper(dict(record))])[0]
        if "instances" not in output:
            return None
        detections = output["instances"].to("cpu")
        if not detections.has("pred_boxes") or not isinstance(detections.pred_boxes, Boxes):
            return None
        found.add(*_truth(record), detections)
        if time.perf_counter() > until:
            break
    return found


def _truth(record: dict[str, Any]) -> tuple[torch.Tensor, list[int]]:
    """The boxes (B, 4) and classes of an image that count in an evaluation."""
    items = [x for x in record.get("annotations", ()) if not x.get("iscrowd", 0)]
    items = [x for x in items if x["bbox_mode"] != BoxMode.XYWHA_ABS]
    boxes = [BoxMode.convert(list(x["bbox"]), x["bbox_mode"], BoxMode.XYXY_ABS) for x in items]
    return torch.tensor(boxes, dtype=torch.float).reshape(-1, 4), [x["category_id"] for x in items]


def check_agreement(cfg: CfgNode, model: Distiller) -> Finding:
    """Compare the teacher's boxes with the ground truth of a few training images."""
    check = "teacher's boxes"
    try:
        found = compare(cfg, model)
    except Exception as problem:  # of a teacher of one's own, or of its INPUT keys
        text = f"the teacher fails on a training image: {type(problem).__name__}: {problem}"
        return error(check, text)
    if found is None or not found.objects:
        return ok(check, "not compared with the ground truth: the teacher or the data has none")
    theirs = teacher_class_names(cfg, read_teacher_config(cfg), model.teacher.classes)
    ours = class_names(cfg)
    comparable = compares_classes(cfg, model.required.requires)
    comparable |= bool(ours and theirs) and same_class_names(ours, theirs)
    text = (
        f"on {found.images} training images it finds {found.found} of {found.objects} objects "
        f"(recall {found.recall:.2f} at IoU {IOU:g}, score {SCORE:g})"
    )
    if comparable:
        text += f"; {found.right} of these have the class of the ground truth"
        text += _describe_confused(found, ours)
    if comparable and (found.recall < LEAST_RECALL or found.agreement < LEAST_AGREEMENT):
        advice = (
            "a trained teacher does better: check DISTILL.TEACHER.WEIGHTS, the order of the "
            "classes and its INPUT keys; --eval-teacher gives its AP"
        )
        return warning(check, text, advice)
    return ok(check, text)


def _describe_confused(found: Agreement, names: tuple[str, ...]) -> str:
    pairs = [
        f"{_name(names, ours)} -> {_name(names, theirs)} ({count})"
        for (ours, theirs), count in found.confused.most_common(3)
    ]
    return f"; most confused: {', '.join(pairs)}" if pairs else ""


def _name(names: tuple[str, ...], index: int) -> str:
    return names[index] if index < len(names) else str(index)
