# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How near a student came to its teacher: the run's own losses, and the similarity of features."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data.detection_utils import build_augmentation
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from ...modeling import Distiller
from ...structures import DistillStep
from .feature_similarity import FeatureSimilarity
from .run_folder import RunFolder

__all__ = ["Imitation", "MOST_IMAGES", "measure_imitation"]

MOST_IMAGES = 64
# Two-stage detectors draw their regions.
SEED = 0
# Fewer locations than this many times the channels make any two maps similar.
_LEAST_LOCATIONS = 4


@dataclass
class Imitation:
    """One student beside the teacher, on images of the test set.

    Attributes:
        images: how many were looked at.
        losses: distillation loss -> mean over the images, at schedule factor 1.
        per_level: "feature" and other losses on levels -> level -> mean.
        similarity: level -> linear CKA of student and teacher, under the feature loss's mask.
    """

    images: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    per_level: dict[str, dict[str, float]] = field(default_factory=dict)
    similarity: dict[str, float] = field(default_factory=dict)


def measure_imitation(
    distilled: RunFolder, baseline: RunFolder, model: Distiller
) -> tuple[Imitation, Imitation | None, str]:
    """Run both students under the distilled run's losses, as trained and without gradients.

    Args:
        distilled: whose adapters are used; the first set of its DATASETS.TEST is looked at.
        baseline: the other student.
        model: of the distilled run; its weights are replaced.

    Returns:
        That of the distilled student and of the baseline; why there is none of the baseline, or
        which of its losses are left out, and "" if all is there.
    """
    batches = _load_images(distilled.cfg)
    model.student.load_state_dict(distilled.content["model"])
    model.distill_losses.load_state_dict(distilled.content.get("distill_losses", {}))
    ours = _measure(model, batches)
    try:
        model.student.load_state_dict(baseline.content["model"])
    except RuntimeError:
        return ours, None, "the baseline is another network, so its features are not compared"
    theirs = _measure(model, batches)
    adapted = [name for name, loss in model.distill_losses.items() if list(loss.parameters())]
    for name in adapted:  # trained for the other student's features
        theirs.losses.pop(name)
        theirs.per_level.pop(name, None)
    if not adapted:
        return ours, theirs, ""
    names = ", ".join(adapted)
    return ours, theirs, f"the adapters of {names} were trained for the distilled student alone"


def _load_images(cfg: CfgNode) -> list[dict[str, Any]]:
    """Images with objects, spread over the test set, in their test size and not augmented."""
    mapper = DatasetMapper(cfg, is_train=True, augmentations=build_augmentation(cfg, False))
    records = [
        record
        for record in DatasetCatalog.get(cfg.DATASETS.TEST[0])
        if any(not item.get("iscrowd", 0) for item in record.get("annotations", ()))
    ]
    step = math.ceil(len(records) / MOST_IMAGES)
    return [mapper(record) for record in records[::step]]


@torch.no_grad()
def _measure(model: Distiller, images: list[dict[str, Any]]) -> Imitation:
    """One image after the other, in training mode but with normalisation as in evaluation."""
    _set_mode(model)
    seed_all_rng(SEED)
    found = Imitation(images=len(images))
    similarity: dict[str, FeatureSimilarity] = {}
    for image in images:
        with EventStorage():
            _, step = model.forward_pair(model.student, model.teacher, [image], model.required)
        for name, loss in model.distill_losses.items():
            terms = loss(step)
            _add(found.losses, name, terms.total, len(images))
            for level, term in terms.per_level.items():
                _add(found.per_level.setdefault(name, {}), level, term, len(images))
        _add_similarity(similarity, step, model)
    found.similarity = {
        level: x.value for level, x in similarity.items() if x.locations >= _least(model, level)
    }
    return found


def _set_mode(model: Distiller) -> None:
    """Heads give their training predictions; what keeps statistics of batches uses those it has."""
    model.train()
    model.student.backbone.eval()
    for module in model.student.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()


def _add(sums: dict[str, float], name: str, value: torch.Tensor, images: int) -> None:
    sums[name] = sums.get(name, 0.0) + float(value) / images


def _add_similarity(
    similarity: dict[str, FeatureSimilarity], step: DistillStep, model: Distiller
) -> None:
    for level, ours in step.student.features.items():
        theirs = step.teacher.features.get(level)
        if theirs is not None and theirs.shape[-2:] == ours.shape[-2:]:
            mask = _mask(step, model, level)
            similarity.setdefault(level, FeatureSimilarity()).add(ours, theirs, mask)


def _mask(step: DistillStep, model: Distiller, level: str) -> torch.Tensor:
    """Where the feature loss compares a level, (N, H, W); everywhere on one that it leaves."""
    ours = step.student.features[level]
    loss = model.distill_losses["feature"] if "feature" in model.distill_losses else None
    if loss is None or level not in loss.adapters:
        return torch.ones_like(ours[:, 0])
    return loss.level_mask(level, step)


def _least(model: Distiller, level: str) -> int:
    channels = [
        x.backbone.output_shape()[level].channels for x in (model.student, model.teacher.model)
    ]
    return _LEAST_LOCATIONS * max(channels)
