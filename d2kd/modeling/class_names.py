# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Whether the classes of student and teacher mean the same, by name and not only by number."""

from collections.abc import Sequence

from detectron2.config import CfgNode

from ..config.detectors import get_detector
from ..data.class_names import class_names, other_class_names, same_class_names
from ..utils.errors import PairMismatchError

__all__ = ["check_class_names", "compares_classes", "teacher_class_names"]


def teacher_class_names(
    cfg: CfgNode, teacher_cfg: CfgNode, recorded: Sequence[str]
) -> tuple[str, ...]:
    """The teacher's classes, by index; empty where nothing tells them.

    Args:
        cfg: the student's; DISTILL.TEACHER.CLASSES comes first.
        teacher_cfg: its sets come last.
        recorded: in the teacher's checkpoint.
    """
    given = cfg.DISTILL.TEACHER.CLASSES or recorded
    return tuple(given) or other_class_names(teacher_cfg, list(cfg.DATASETS.CUSTOM))


def compares_classes(cfg: CfgNode, requires: frozenset[str]) -> bool:
    """Whether a loss reads outputs that have a row for each class.

    Args:
        cfg: the student's.
        requires: what the losses read from the teacher.
    """
    # The dense head of a two-stage detector tells objects from background only.
    with_classes = {"logits", "deltas"}
    if not get_detector(cfg).two_stage:
        with_classes |= {"dense_logits", "box_bins"}
    return bool(requires & with_classes)


def check_class_names(cfg: CfgNode, theirs: Sequence[str], requires: frozenset[str]) -> None:
    """The losses compare class by class only what has the same name.

    Args:
        cfg: the student's, its sets registered.
        theirs: from ``teacher_class_names``; nothing is checked where either's are not known.
        requires: what the losses read from the teacher.

    Raises:
        PairMismatchError: lists both detectors' classes.
    """
    ours = class_names(cfg)
    if not compares_classes(cfg, requires) or not ours or not theirs:
        return
    if same_class_names(ours, theirs):
        return
    permuted = sorted(ours) == sorted(theirs)
    raise PairMismatchError(
        f"the teacher's classes are {', '.join(theirs)}, the student's {', '.join(ours)}, and the "
        f"enabled losses compare them one by one: {_advise(cfg, theirs, permuted)}"
    )


def _advise(cfg: CfgNode, theirs: Sequence[str], permuted: bool) -> str:
    if not permuted:
        return (
            "choose a teacher of these classes, or leave 'cls' and 'reg' out of DISTILL.LOSSES; "
            "if the names alone differ, set DISTILL.TEACHER.CLASSES to the student's"
        )
    sets = [name for name in cfg.DATASETS.TRAIN if name in cfg.DATASETS.CUSTOM]
    if sets:
        keys = " and ".join(f"DATASETS.CUSTOM.{name}.CLASSES" for name in sets)
        return f"set {keys} to {list(theirs)}, and those of DATASETS.TEST likewise"
    return "register the data sets with the classes in the teacher's order"
