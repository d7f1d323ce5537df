# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The zoo's yaml files as teachers and as students."""

from pathlib import Path

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode

from d2kd.modeling import FrozenTeacher
from d2kd.modeling.build import build_student, build_teacher, build_teacher_model
from d2kd.utils.errors import D2kdError
from d2kd.utils.text import first_line

from .data import read_from, write_images
from .partners import PARTNERS, number_of_classes, read, read_partner
from .step import LOSSES, pair_of_configs, tame, try_step

__all__ = ["Zoo", "build_random_teacher", "zoo_names", "zoo_root"]

FOLDERS = ("COCO-*", "LVIS*", "Cityscapes", "PascalVOC*", "Misc", "Detectron1*")


def zoo_root() -> Path:
    """The folder of Detectron2's configs."""
    return Path(model_zoo.get_config_file(PARTNERS["fpn"])).parents[1]


def zoo_names() -> list[str]:
    """The yaml configs of Detectron2's zoo, without the bases that only others build on."""
    root = zoo_root()
    paths = [path for folder in FOLDERS for path in sorted(root.glob(f"{folder}/*.yaml"))]
    return [str(x.relative_to(root)) for x in paths if not x.name.startswith("Base-")]


class Zoo:
    """Takes the steps; everything that it writes is in ``folder``."""

    def __init__(self, folder: Path, opts: dict[str, object] | None = None):
        """
        Args:
            opts: keys of every config, in place of its own; the tests' networks are thin.
        """
        self.folder, self.opts = folder, opts or {}
        self.records = write_images(folder)

    def try_config(self, name: str) -> dict[str, str]:
        """Column of the table -> YES, or why not."""
        row = {}
        for role, under in (("", "student"), ("student ", "teacher")):
            pair = self._build(name, under)
            for losses, names in LOSSES.items():
                known = isinstance(pair, str)
                row[role + losses] = pair if known else try_step(pair_of_configs, pair, names)
        return row

    def _build(self, name: str, partner: str) -> tuple | str:
        """Both configs and networks, the partner thin; or why there are none."""
        cfg = read(name, self.opts)
        classes = number_of_classes(cfg)
        other = read_partner(_kind_of(cfg), classes)
        ours, theirs = (other, cfg) if partner == "student" else (cfg, other)
        read_from(ours, self.folder, self.records, classes)
        try:
            return (
                ours,
                theirs,
                tame(build_student(ours)),
                build_random_teacher(theirs, self.folder),
            )
        except D2kdError as error:
            return first_line(error)


def build_random_teacher(cfg: CfgNode, folder: Path) -> FrozenTeacher:
    """With random weights, which are saved and loaded as a checkpoint."""
    cfg.MODEL.WEIGHTS = str(folder / "teacher.pth")
    torch.save({"model": tame(build_teacher_model(cfg)).state_dict()}, cfg.MODEL.WEIGHTS)
    return build_teacher(cfg, "BGR")


def _kind_of(cfg: CfgNode) -> str:
    """A key of PARTNERS."""
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        return "retinanet"
    if "fpn" in cfg.MODEL.BACKBONE.NAME:
        return "fpn"
    return {"res4": "c4", "res5": "dc5"}[cfg.MODEL.RESNETS.OUT_FEATURES[-1]]
