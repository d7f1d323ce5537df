# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The records that a training reads, without its loader."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts

from .datasets.declared import register_custom_datasets

__all__ = ["load_train_records"]


def load_train_records(cfg: CfgNode) -> list[dict[str, Any]]:
    """The records of DATASETS.TRAIN that Detectron2's loader of this config keeps."""
    register_custom_datasets(cfg)
    return get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
