"""Data sets: the synthetic shapes, and what a config declares under DATASETS.CUSTOM."""

from .shapes import register_shapes

register_shapes()
