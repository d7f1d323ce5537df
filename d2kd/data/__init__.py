"""Data sets: the synthetic shapes, and what a config declares under DATASETS.CUSTOM."""

from .classes import check_num_classes, num_classes, num_classes_key
from .custom import register_custom_datasets
from .errors import DatasetError, DatasetFileNotFoundError
from .evaluation import VOCAP50Evaluator, build_evaluator
from .mapper import BadImageError, build_mapper
from .shapes import register_shapes

__all__ = [
    "BadImageError",
    "DatasetError",
    "DatasetFileNotFoundError",
    "VOCAP50Evaluator",
    "build_evaluator",
    "build_mapper",
    "check_num_classes",
    "num_classes",
    "num_classes_key",
    "register_custom_datasets",
]

register_shapes()
