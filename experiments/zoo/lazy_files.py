# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The zoo's LazyConfig files as teachers of a yaml's student, and as students by compose."""

import re
from pathlib import Path
from typing import Any

from detectron2 import model_zoo
from detectron2.config import CfgNode, instantiate
from torch import nn

from d2kd.config.user_modules import default_config
from d2kd.losses.classification import ClassificationLoss
from d2kd.losses.regression import RegressionLoss
from d2kd.modeling import Distiller, FrozenTeacher, feature_loss
from d2kd.modeling.build import build_student, read_teacher_config
from d2kd.modeling.detector_facts import write_facts
from d2kd.modeling.lazy_teacher import load_lazy
from d2kd.utils.errors import D2kdError
from d2kd.utils.text import first_line

from .data import read_from, write_images
from .partners import FEW, number_of_classes, read_partner
from .step import LOSSES, Pair, pair_of_configs, tame, try_step
from .yaml_files import build_random_teacher, zoo_root

__all__ = ["LazyZoo", "lazy_networks"]

FOLDERS = ("COCO-*", "Misc/mmdet*", "new_baselines")
# As the keys FEW, in a LazyConfig's model.
SHORT = {
    "proposal_generator.batch_size_per_image": FEW["MODEL.RPN.BATCH_SIZE_PER_IMAGE"],
    "proposal_generator.post_nms_topk": [FEW["MODEL.RPN.POST_NMS_TOPK_TRAIN"]] * 2,
    "roi_heads.batch_size_per_image": FEW["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"],
}


def lazy_networks() -> dict[str, list[str]]:
    """LazyConfig file of the zoo -> the others that build the same network."""
    root, first, networks = zoo_root(), {}, {}
    patterns = [x if "/" in x else f"{x}/*" for x in FOLDERS]
    for path in (path for x in patterns for path in sorted(root.glob(f"{x}.py"))):
        name = str(path.relative_to(root))
        # Functions are printed with an address, which differs in every file.
        model = re.sub(r" at 0x[0-9a-f]+", "", str(load_lazy(str(path)).model))
        if model in first:
            networks[first[model]].append(name)
        else:
            first[model], networks[name] = name, []
    return networks


class LazyZoo:
    """Takes the steps; everything that it writes is in ``folder``."""

    def __init__(self, folder: Path):
        self.folder, self.records = folder, write_images(folder)

    def try_config(self, name: str, role: str) -> dict[str, str]:
        """The columns of a role -> YES, or why not.

        Args:
            name: in Detectron2's zoo, or the path of a LazyConfig file.
            role: "" for the teacher's columns, "student " for the student's.
        """
        build, make = {
            "": (self._under_student, pair_of_configs),
            "student ": (self._under_teacher, _pair_of_parts),
        }[role]
        try:
            pair = build(name)
        except (D2kdError, ImportError) as error:
            reason = first_line(error).replace(f"{zoo_root()}/", "")
            return {role + x: reason for x in LOSSES}
        return {role + x: try_step(make, pair, names) for x, names in LOSSES.items()}

    def _under_student(self, name: str) -> Pair:
        """The file's detector as the teacher of a thin yaml's student."""
        cfg = _read(name, self.folder / "teacher.pth")
        teacher = build_random_teacher(cfg, self.folder)
        ours = read_partner(_kind_of(teacher.model), number_of_classes(cfg))
        self._read_images(ours)
        return ours, cfg, tame(build_student(ours)), teacher

    def _under_teacher(self, name: str) -> Pair:
        """The file's detector as the student of a thin yaml's teacher."""
        path = name if Path(name).is_file() else model_zoo.get_config_file(name)
        student = tame(instantiate(_shortened(load_lazy(path).model)))
        ours = default_config()
        write_facts(ours, student)
        self._read_images(ours)
        other = read_partner(_kind_of(student), number_of_classes(ours))
        return ours, other, student, build_random_teacher(other, self.folder)

    def _read_images(self, cfg: CfgNode) -> None:
        read_from(cfg, self.folder, self.records, number_of_classes(cfg))


def _read(name: str, weights: Path) -> CfgNode:
    """The keys of a LazyConfig teacher with these weights, as a student's config names it."""
    cfg = default_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.DISTILL.TEACHER.CONFIG_FILE, cfg.DISTILL.TEACHER.WEIGHTS = name, str(weights)
    return read_teacher_config(cfg)


def _shortened(model: Any) -> Any:
    for key, value in SHORT.items():
        part, name = key.split(".")
        if part in model:
            model[part][name] = value
    return model


def _kind_of(model: nn.Module) -> str:
    """A key of PARTNERS."""
    name = type(model).__name__.lower()
    if name in ("retinanet", "fcos"):
        return name
    return "fpn" if "p2" in model.backbone.output_shape() else "c4"


def _pair_of_parts(
    cfg: CfgNode, teacher_cfg: CfgNode, student: nn.Module, teacher: FrozenTeacher, names: list
) -> Distiller:
    """The pair by ``Distiller.compose``, with the losses of the yamls' pairs."""
    losses = {
        "feature": feature_loss(mask="uniform"),
        "cls": ClassificationLoss(
            weight=1.0, where="positives", distance="cross_entropy", temperature=1.0
        ),
        "reg": RegressionLoss(weight=1.0, gate="none", distance="box_loss", temperature=10.0),
    }
    chosen = {name: losses[name] for name in names}
    return Distiller.compose(student=student, teacher=teacher, losses=chosen)
