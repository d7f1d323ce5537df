# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The training loader of a LazyConfig, which can be resumed where Detectron2's own is meant."""

from collections.abc import Iterable
from typing import Any

from detectron2.config import instantiate
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import IterableDataset

from .mapper import NamingMapper
from .resumable_loader import make_resumable

__all__ = ["build_lazy_train_loader"]

# The names by which a file of text may mean Detectron2's function.
_NAMES = [
    "detectron2.data.build_detection_train_loader",
    "detectron2.data.build.build_detection_train_loader",
]


def build_lazy_train_loader(node: Any, on_bad_image: str = "stop") -> Iterable[list[dict]]:
    """``dataloader.train`` of a LazyConfig.

    Detectron2's ``build_detection_train_loader`` is replaced by one with the same batches that
    resumes exactly and names bad images. A loader of one's own is left as it is.

    Args:
        node: the LazyCall.
        on_bad_image: "stop" or "skip".
    """
    target = node["_target_"]
    if target is not build_detection_train_loader and target not in _NAMES:
        return instantiate(node)
    parts = {name: instantiate(value) for name, value in node.items() if name != "_target_"}
    dataset, mapper = parts.pop("dataset"), parts.pop("mapper")
    if isinstance(dataset, IterableDataset) or mapper is None or parts.pop("collate_fn", None):
        return instantiate(node)
    sampler = parts.pop("sampler", None)
    return make_resumable(
        dataset,
        NamingMapper(mapper, getattr(mapper, "image_format", "BGR"), on_bad_image),
        TrainingSampler(len(dataset)) if sampler is None else sampler,
        total_batch_size=parts["total_batch_size"],
        grouped=parts.get("aspect_ratio_grouping", True),
        num_workers=parts.get("num_workers", 0),
    )
