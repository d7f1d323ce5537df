# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The names of a detector's classes, as its data sets tell them."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .datasets.declared import read_declared_classes
from .num_classes import num_classes

__all__ = ["class_names", "other_class_names", "same_class_names"]


def class_names(cfg: CfgNode) -> tuple[str, ...]:
    """The classes of a config's registered sets, by index; empty where they are not known.

    Args:
        cfg: DATASETS.TRAIN, or DATASETS.TEST where nothing is trained. Sets that a config declares
            are registered already.
    """
    sets = cfg.DATASETS.TRAIN or cfg.DATASETS.TEST
    return _of_sets(cfg, sets)


def other_class_names(cfg: CfgNode, foreign: Sequence[str]) -> tuple[str, ...]:
    """The classes of another detector's config, whose sets need not be here.

    Args:
        cfg: of the other detector; nothing of it is registered.
        foreign: names of sets that this run declares: they need not be what ``cfg`` means by them.
    """
    sets = cfg.DATASETS.TRAIN or cfg.DATASETS.TEST
    if any(name in cfg.DATASETS.CUSTOM for name in sets):
        return _if_as_many(cfg, read_declared_classes(cfg))
    return _of_sets(cfg, [name for name in sets if name not in foreign])


def same_class_names(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether two lists name the same classes in the same order, however they are spelled."""
    return [_spelling(name) for name in ours] == [_spelling(name) for name in theirs]


def _spelling(name: str) -> str:
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _of_sets(cfg: CfgNode, sets: Sequence[str]) -> tuple[str, ...]:
    for name in sets:
        # ``get`` alone would create an entry.
        metadata = MetadataCatalog.get(name) if name in MetadataCatalog else None
        names = metadata.get("thing_classes") if metadata is not None else None
        if names:
            return _if_as_many(cfg, tuple(names))
    return ()


def _if_as_many(cfg: CfgNode, names: tuple[str, ...]) -> tuple[str, ...]:
    """No names where the detector has another number: its sets were not set, but inherited."""
    expected = num_classes(cfg)
    return names if expected in (None, len(names)) else ()
