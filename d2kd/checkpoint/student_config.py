# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""student.yaml: the config with which plain Detectron2 builds and loads the student."""

import json
import os

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ..config.student import dump_student_config, student_config
from ..data import class_names
from .atomic_write import AtomicPathManager

__all__ = ["write_student_config"]


def write_student_config(cfg: CfgNode) -> None:
    """Write student.yaml into OUTPUT_DIR; its MODEL.WEIGHTS is the run's last checkpoint.

    Raises:
        WeightsError: the file cannot be written.
    """
    student = student_config(cfg)
    # The path must hold wherever the file is read from. Addresses ("s3://") are absolute already.
    folder = cfg.OUTPUT_DIR if "://" in cfg.OUTPUT_DIR else os.path.abspath(cfg.OUTPUT_DIR)
    student.MODEL.WEIGHTS = os.path.join(folder, "model_final.pth")
    first, rest = dump_student_config(student).split("\n", 1)
    names = class_names(cfg)
    if names:
        first += f"\n# Its classes: {json.dumps(names)}"
    PathManager.mkdirs(cfg.OUTPUT_DIR)
    with AtomicPathManager().open(os.path.join(cfg.OUTPUT_DIR, "student.yaml"), "w") as file:
        file.write(f"{first}\n{rest}")
