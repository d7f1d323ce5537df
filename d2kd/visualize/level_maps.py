# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What the losses on feature levels see of one image: their masks, energies and distances.

Shape shorthand in this file:
    N: images in the batch; A: anchors per location; C, H, W: size of a feature level
"""

from typing import NamedTuple

from torch import Tensor, nn

from ..losses.classification import ClassificationLoss
from ..losses.feature import FeatureLoss
from ..losses.locations import anchor_weights
from ..losses.regression import RegressionLoss
from ..structures import DistillStep

__all__ = ["FeatureMaps", "Maps", "feature_maps", "level_masks"]

# Level name -> (H, W) float32 on the CPU.
Maps = dict[str, Tensor]


class FeatureMaps(NamedTuple):
    """The feature loss at one image; without one, every field is empty.

    Attributes:
        teacher, student: the energy, mean over channels of the squared value; the student's after
            the adapter.
        distance: what the loss weighs by its mask.
        name: of the distance.
        adapted: whether there is an adapter on any level.
    """

    teacher: Maps
    student: Maps
    distance: Maps
    name: str
    adapted: bool = False


def feature_maps(losses: nn.ModuleDict, step: DistillStep, image: int) -> FeatureMaps:
    """The energies and the distance of the levels that the feature loss compares.

    Args:
        losses: the enabled ones, by name.
        image: index in the batch.
    """
    found = FeatureMaps({}, {}, {}, "")
    for loss in losses.values():
        if isinstance(loss, FeatureLoss):
            adapted = not all(isinstance(x, nn.Identity) for x in loss.adapters.values())
            found = FeatureMaps({}, {}, {}, loss.distance_name, adapted)
            for level in loss.adapters:
                maps = loss.level_maps(level, step)
                found.teacher[level] = _plain(_energy(maps.teacher[image]))
                found.student[level] = _plain(_energy(maps.student[image]))
                found.distance[level] = _plain(maps.cost[image])
    return found


def _energy(features: Tensor) -> Tensor:
    """(C, H, W) -> (H, W)."""
    return features.float().square().mean(dim=0)


def _plain(x: Tensor) -> Tensor:
    return x.detach().float().cpu()


def level_masks(losses: nn.ModuleDict, step: DistillStep, image: int) -> dict[str, Maps]:
    """The masks of all levels on which a loss uses one; a mask that is 1 everywhere is left out.

    Args:
        losses, image: of ``feature_maps``.

    Returns:
        "mask (losses)" -> its maps. Losses with equal masks share an entry.
    """
    found: list[tuple[str, list[str], Maps]] = []
    for name, loss in losses.items():
        mask, maps = _mask_of(loss, step, image)
        if all((x == 1).all() for x in maps.values()):  # also without any
            continue
        for other, names, theirs in found:
            if other == mask and _equal(maps, theirs):
                names.append(name)
                break
        else:
            found.append((mask, [name], maps))
    return {f"{mask} ({', '.join(names)})": maps for mask, names, maps in found}


def _mask_of(loss: nn.Module, step: DistillStep, image: int) -> tuple[str, Maps]:
    """Name and maps of a loss's mask; no maps if it has none."""
    if isinstance(loss, FeatureLoss):
        maps = {x: _plain(loss.level_mask(x, step)[image]) for x in loss.adapters}
        return loss.mask_name, maps
    if isinstance(loss, ClassificationLoss) and loss.mask is not None:
        levels = step.student.dense_logits
        return loss.where, {x: _plain(loss.level_maps(x, step)[1][image]) for x in levels}
    if isinstance(loss, RegressionLoss) and loss.where != "positives":
        return loss.where, {x: _of_anchors(loss.where, step, x, image) for x in step.anchors}
    return "", {}


def _of_anchors(kind: str, step: DistillStep, level: str, image: int) -> Tensor:
    """The largest weight of a cell's anchors, (H, W)."""
    size = step.teacher.dense_logits[level].shape[-2:]
    weights = anchor_weights(step, level, kind)[image]
    return _plain(weights.view(*size, -1).amax(dim=2))


def _equal(ours: Maps, theirs: Maps) -> bool:
    return list(ours) == list(theirs) and all(ours[x].equal(theirs[x]) for x in ours)
