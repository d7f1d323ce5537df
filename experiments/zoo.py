# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Writes docs/zoo.md: which configs of Detectron2's model zoo can teach and be taught what.

    python -m experiments.zoo docs/zoo.md --results output/zoo.json

Every config that Detectron2 installs is built as it is, with random weights, and takes a real
training step on tiny images: as the teacher of a thin student, and as the student of a thin
teacher. What is done is kept in the results' file, so that a second call goes on.
"""

import argparse
import copy
import json
import tempfile
import textwrap
import time
from pathlib import Path

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling.backbone.resnet import BottleneckBlock, DeformBottleneckBlock
from detectron2.utils.events import EventStorage
from torch import nn

from d2kd import DistillTrainer
from d2kd.config.defaults import add_d2kd_config, get_value
from d2kd.config.detectors import find_detector
from d2kd.modeling import Distiller, FrozenTeacher, split_losses
from d2kd.modeling.build import build_student, build_teacher
from d2kd.modeling.build_losses import build_distill_losses
from d2kd.modeling.paired_forward.registry import get_paired_forward
from d2kd.utils.errors import D2kdError
from d2kd.utils.text import first_line
from experiments.zoo_data import read_from, write_images

__all__ = ["FOLDERS", "ROLES", "Zoo", "document", "zoo_names"]

FOLDERS = ("COCO-*", "LVIS*", "Cityscapes", "PascalVOC*", "Misc", "Detectron1*")
# Column -> what it says.
ROLES = {
    "features": "teacher, features",
    "all": "teacher, all losses",
    "student features": "student, features",
    "student all": "student, all losses",
}
LOSSES = {"features": ["feature"], "all": ["feature", "cls", "reg"]}
# The other side of a pair, by the levels of the config's backbone.
PARTNERS = {
    "fpn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "c4": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "dc5": "COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
}
THIN = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
}
# Keys of all configs that make a step short.
FEW = {
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
}
YES = "yes"

INTRODUCTION = """# Detectron2's model zoo under d2kd

Which configs of Detectron2's model zoo can teach, and which can be taught.
`python -m experiments.zoo docs/zoo.md` writes this page from real training steps on a CPU. Every
config is built as Detectron2 installs it, with random weights, and takes one step on images of 96 x
112 pixels, with 16 proposals of each. As a teacher it teaches a thin student of its kind of
backbone (FPN, C4, DC5, or RetinaNet's FPN). As a student it learns from a thin teacher of that
kind. "Yes" means that the student's own losses were equal, bit for bit, to those of plain
Detectron2 on the same batch, that each distillation loss was above 0, and that every gradient was
finite. "All losses" are `feature`, `cls` and `reg`. A number refers to the reasons below the table.

"""


def zoo_names() -> list[str]:
    """The configs of Detectron2's zoo, without the bases that only others build on."""
    root = Path(model_zoo.get_config_file(PARTNERS["fpn"])).parents[1]
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
                key = role + losses
                row[key] = pair if isinstance(pair, str) else _try(pair, names)
        return row

    def _build(self, name: str, partner: str) -> tuple | str:
        """Both configs and networks, the partner thin; or why there are none."""
        cfg = read(name, self.opts)
        classes = number_of_classes(cfg)
        other = read(PARTNERS[kind_of(cfg)], THIN)
        other.MODEL[_group(other)].NUM_CLASSES = classes
        ours, theirs = (other, cfg) if partner == "student" else (cfg, other)
        read_from(ours, self.folder, self.records, classes)
        try:
            return ours, theirs, tame(build_student(ours)), self._build_teacher(theirs)
        except D2kdError as error:
            return first_line(error)

    def _build_teacher(self, cfg: CfgNode) -> FrozenTeacher:
        """With random weights, which are saved and loaded as a checkpoint."""
        cfg.MODEL.WEIGHTS = str(self.folder / "teacher.pth")
        torch.save({"model": tame(build_student(cfg)).state_dict()}, cfg.MODEL.WEIGHTS)
        return build_teacher(cfg, "BGR")


def read(name: str, opts: dict[str, object]) -> CfgNode:
    """A config of the zoo, on the CPU, with the keys of ``opts``."""
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(name))
    cfg.merge_from_list([part for item in {**FEW, **opts}.items() for part in item])
    cfg.MODEL.DEVICE, cfg.DISTILL.ENABLED = "cpu", True
    cfg.DISTILL.REG.GATE, cfg.DISTILL.FEATURE.MASK = "none", "uniform"
    return cfg


def kind_of(cfg: CfgNode) -> str:
    """A key of PARTNERS."""
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        return "retinanet"
    if "fpn" in cfg.MODEL.BACKBONE.NAME:
        return "fpn"
    return {"res4": "c4", "res5": "dc5"}[cfg.MODEL.RESNETS.OUT_FEATURES[-1]]


def _group(cfg: CfgNode) -> str:
    return "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"


def number_of_classes(cfg: CfgNode) -> int:
    row = find_detector(cfg)
    return get_value(cfg, row.num_classes_key) if row and row.num_classes_key else 80


def tame(model: nn.Module) -> nn.Module:
    """Keep the features of a deep random network of order 1: let each block change them little."""
    for module in model.modules():
        if isinstance(module, (BottleneckBlock, DeformBottleneckBlock)):
            module.conv3.norm.weight.data.fill_(0.2)
    return model


def _try(pair: tuple, names: list[str]) -> str:
    try:
        _step(*pair, names)
    except D2kdError as error:
        return first_line(error)
    except NotImplementedError as error:
        return f"{first_line(error).partition('!')[0]}: it has no backward there"
    return YES


def _step(
    cfg: CfgNode, teacher_cfg: CfgNode, student: nn.Module, teacher: FrozenTeacher, names: list
) -> None:
    """A training step under these losses; raises where it is not what it must be."""
    cfg.DISTILL.LOSSES = names
    model = Distiller(
        student=student,
        teacher=teacher,
        distill_losses=build_distill_losses(cfg, teacher_cfg, student, teacher.model),
        forward_pair=get_paired_forward(cfg),
    ).train()
    for name in names:
        model.register_loss_hook(name, lambda loss, step: loss(step))
    torch.manual_seed(0)
    batch = next(iter(DistillTrainer.build_train_loader(cfg)))
    # A copy, for RetinaNet keeps an average over steps on itself.
    stock, found = _forward(copy.deepcopy(student), batch), _forward(model, batch)
    own, distilled = split_losses(found)
    assert list(own) == list(stock) and all(torch.equal(own[k], stock[k]) for k in stock)
    assert list(distilled) == names and all(x.isfinite() and x > 0 for x in distilled.values())
    model.zero_grad()
    sum(found.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


def _forward(model: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    with EventStorage():
        return model(batch)


def document(results: dict[str, dict[str, str]]) -> str:
    """The page of all results."""
    reasons = list(dict.fromkeys(x for row in results.values() for x in row.values() if x != YES))
    lines = ["| config | " + " | ".join(ROLES.values()) + " |", "| --- |" + " --- |" * len(ROLES)]
    for name, row in results.items():
        cells = [x if x == YES else f"no ({reasons.index(x) + 1})" for x in map(row.get, ROLES)]
        lines.append(f"| {name.removesuffix('.yaml')} | " + " | ".join(cells) + " |")
    counts = [f"{sum(r[key] == YES for r in results.values())} of {len(results)}" for key in ROLES]
    lines.append("| **yes** | " + " | ".join(counts) + " |")
    why = [_item(f"{i}. {text}") for i, text in enumerate(reasons, start=1)]
    return INTRODUCTION + "\n".join([*lines, "", "## Reasons", "", *why, ""])


def _item(text: str) -> str:
    return textwrap.fill(text, 100, subsequent_indent="   ", break_on_hyphens=False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="the page to write")
    parser.add_argument("--results", type=Path, default=Path("output/zoo.json"))
    args = parser.parse_args(arguments)
    names = zoo_names()
    results = json.loads(args.results.read_text()) if args.results.is_file() else {}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        zoo = Zoo(Path(folder))
        for name in (x for x in names if x not in results):
            start = time.perf_counter()
            results[name] = zoo.try_config(name)
            args.results.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{time.perf_counter() - start:5.1f} s {name}: {results[name]}", flush=True)
    args.page.write_text(document({name: results[name] for name in names}))


if __name__ == "__main__":
    main()
