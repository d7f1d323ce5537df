# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Data sets: the synthetic shapes, and what a config declares under DATASETS.CUSTOM."""

from .class_names import class_names
from .datasets.declared import register_custom_datasets
from .datasets.registered import check_registered_sets
from .datasets.synthetic_shapes import register_shapes
from .mapper import build_mapper
from .num_classes import check_num_classes, num_classes, num_classes_key
from .resumable_loader import build_train_loader

__all__ = [
    "build_mapper",
    "build_train_loader",
    "check_num_classes",
    "class_names",
    "check_registered_sets",
    "num_classes",
    "num_classes_key",
    "register_custom_datasets",
]

register_shapes()
