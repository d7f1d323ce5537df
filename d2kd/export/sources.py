# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What an export reads: the student, its run's data sets, and its teacher."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from torch import nn

from ..checkpoint.weights import load_weights_strict, resolve_weights
from ..config.load import load_config
from ..config.student import student_config
from ..data import class_names
from ..modeling.build import build_teacher, read_teacher_config
from ..modeling.parts import build_detector
from ..utils.errors import ConfigError, D2kdError
from ..utils.text import first_line

__all__ = ["Student", "load_configs", "load_student", "load_teacher"]


class Student(NamedTuple):
    """A trained student.

    Attributes:
        model: Detectron2's own, in eval mode on the CPU.
        classes: their names, by index; empty where nothing tells them.
        weights: the file.
    """

    model: nn.Module
    classes: tuple[str, ...]
    weights: str


def load_configs(path: str, options: Sequence[str]) -> tuple[CfgNode, CfgNode]:
    """The student's config, and that of the run which trained it.

    student.yaml has neither declared data sets nor a teacher; config.yaml beside it has them. The
    declared sets are added to the student's config.

    Args:
        path: of student.yaml, or of the config of a training.
        options: ``KEY VALUE ...`` of the command line.
    """
    cfg = load_config(path, options)
    beside = os.path.join(os.path.dirname(path), "config.yaml")
    run = load_config(beside) if not cfg.DISTILL.ENABLED and os.path.isfile(beside) else cfg.clone()
    if not cfg.DATASETS.CUSTOM:
        cfg.DATASETS.CUSTOM = run.DATASETS.CUSTOM
    cfg.MODEL.DEVICE = run.MODEL.DEVICE = "cpu"
    return cfg, run


def load_student(cfg: CfgNode, weights: str = "") -> Student:
    """Build the student as plain Detectron2 does, and load all of its weights.

    Args:
        cfg: its config; its data sets are registered where they are known.
        weights: in place of MODEL.WEIGHTS.

    Raises:
        ConfigError: no weights are named, or the detector cannot be built.
        WeightsError: they are absent or incomplete.
    """
    weights = weights or cfg.MODEL.WEIGHTS
    if not weights:
        raise ConfigError(
            "MODEL.WEIGHTS is empty: set --weights to the checkpoint of the trained student"
        )
    path = resolve_weights(weights, "MODEL.WEIGHTS (or --weights)")
    model = build_detector(student_config(cfg)).eval()
    loaded = load_weights_strict(model, weights, path, "student")
    return Student(model, tuple(loaded.classes) or class_names(cfg), path)


def load_teacher(run: CfgNode) -> tuple[nn.Module | None, str]:
    """The teacher of a distilled run, or None and why there is none."""
    if not run.DISTILL.ENABLED:
        return None, "the run was not distilled"
    try:
        teacher_cfg = read_teacher_config(run)
        return build_teacher(teacher_cfg, run.INPUT.FORMAT).model.eval(), ""
    except D2kdError as error:
        return None, first_line(error)
