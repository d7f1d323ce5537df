# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The networks and batches that the benchmark measures, built from a config."""

import copy
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import Boxes, Instances
from detectron2.utils.file_io import PathManager
from torch import nn

from ..config.load import load_config
from ..config.student import student_config
from ..data import register_custom_datasets
from ..data.num_classes import num_classes
from ..engine import DistillTrainer
from ..modeling import Distiller, FrozenTeacher
from ..modeling.build import (
    build_student,
    build_teacher,
    build_teacher_model,
    read_teacher_config,
)
from ..modeling.build_losses import build_distill_losses, union_of_requires
from ..modeling.paired_forward.registry import get_paired_forward
from ..modeling.teacher_cache.build import build_teacher_cache
from ..modeling.teacher_cache.cached_maps import TeacherCache
from ..utils.device import device_or_cpu
from ..utils.errors import ConfigError

__all__ = [
    "Pair",
    "build_any_teacher",
    "build_networks",
    "build_stock",
    "read_config",
    "real_batches",
    "synthetic_batches",
]


@dataclass
class Pair:
    """Two detectors and the losses between them.

    Attributes:
        stock: Detectron2's own model of the student's config, which shares the student's tensors.
        teacher: as Detectron2 builds and runs it; the lower bound is measured with it.
        optimized_teacher: the same with DISTILL.TEACHER's layout, compilation and precision; the
            distilled step is measured with it.
        random: those of "student" and "teacher" whose weights are random.
    """

    cfg: CfgNode
    stock: nn.Module | None
    student: nn.Module
    teacher: FrozenTeacher
    optimized_teacher: FrozenTeacher
    losses: nn.ModuleDict
    random: list[str]

    def distiller(self, names: Sequence[str], cache: str = "") -> Distiller:
        """The model that training with these losses alone would build, on the shared networks.

        Args:
            cache: DISTILL.TEACHER.CACHE of this model alone.
        """
        model = Distiller(
            student=self.student,
            teacher=self._cached_teacher(cache) if cache else self.optimized_teacher,
            distill_losses=nn.ModuleDict({name: self.losses[name] for name in names}),
            forward_pair=get_paired_forward(self.cfg),
            proposals=self.cfg.DISTILL.PROPOSALS,
            cross_head=self.cfg.DISTILL.CROSS_HEAD,
        ).train()
        for name in names:
            model.register_loss_hook(name, lambda loss, step: loss(step))
        return model

    def _cached_teacher(self, cache: str) -> FrozenTeacher:
        """The optimized teacher with an empty cache of its own."""
        cfg, teacher_cfg = self.cfg.clone(), read_teacher_config(self.cfg)
        cfg.defrost()
        cfg.DISTILL.TEACHER.CACHE = cache
        model = self.optimized_teacher.model
        # Random weights have no file, and nothing in the folder is of theirs.
        name = self.optimized_teacher.fingerprint.get("sha256") or secrets.token_hex(16)
        return _optimized(
            cfg, model, self.teacher, build_teacher_cache(cfg, teacher_cfg, model, name)
        )

    def requires(self, names: Sequence[str]) -> frozenset[str]:
        """The outputs of the teacher that these losses need."""
        return union_of_requires(self.losses[name] for name in names)


def read_config(path: str, opts: Sequence[str], modules: Sequence[str] = ()) -> CfgNode:
    """The config as train_net.py reads it, on the CPU if there is no GPU, which is printed.

    Raises:
        ConfigError: a key is unknown or out of range, or nothing is distilled.
    """
    cfg = load_config(path, opts, modules)
    if not cfg.DISTILL.ENABLED:
        raise ConfigError(f"{path} trains without a teacher: set DISTILL.ENABLED to True")
    cfg.MODEL.DEVICE, changed = device_or_cpu(cfg.MODEL.DEVICE)
    if changed:
        print(changed, flush=True)
    cfg.freeze()
    return cfg


def build_stock(cfg: CfgNode) -> nn.Module:
    """The baseline as stock Detectron2 builds it, in training mode and with random weights."""
    torch.manual_seed(1)
    return _tame(build_model(student_config(cfg)).train())


def build_any_teacher(cfg: CfgNode, random_weights: bool = False) -> tuple[FrozenTeacher, bool]:
    """The teacher, and whether its weights are random: if asked for, or if the file is absent."""
    teacher_cfg = read_teacher_config(cfg)
    if not random_weights and PathManager.isfile(teacher_cfg.MODEL.WEIGHTS):
        return build_teacher(teacher_cfg, cfg.INPUT.FORMAT), False
    torch.manual_seed(2)
    swap = teacher_cfg.INPUT.FORMAT != cfg.INPUT.FORMAT
    return FrozenTeacher(_tame(build_teacher_model(teacher_cfg)), swap_channels=swap), True


def build_networks(
    cfg: CfgNode, random_weights: bool = False, separate_baseline: bool = True
) -> Pair:
    """Build both detectors and the losses; weights whose file is absent are random.

    Args:
        cfg: from ``read_config``.
        random_weights: use random weights even if the files are there.
        separate_baseline: also build what the lower bound needs, a stock student and a teacher
            without the optimizations.
    """
    torch.manual_seed(1)
    random, student = [], _tame(build_student(cfg).train())
    if random_weights or not PathManager.isfile(cfg.MODEL.WEIGHTS):
        random.append("student")
    else:
        DetectionCheckpointer(student).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    teacher, drawn = build_any_teacher(cfg, random_weights)
    random += ["teacher"] if drawn else []
    model = copy.deepcopy(teacher.model) if separate_baseline else teacher.model
    optimized_teacher = _optimized(cfg, model, teacher)
    losses = build_distill_losses(cfg, read_teacher_config(cfg), student, teacher.model)
    stock = build_stock(cfg) if separate_baseline else None
    if stock:
        stock.load_state_dict(student.state_dict(keep_vars=True), assign=True)
    return Pair(cfg, stock, student, teacher, optimized_teacher, losses, random)


def _optimized(
    cfg: CfgNode, model: nn.Module, teacher: FrozenTeacher, cache: TeacherCache | None = None
) -> FrozenTeacher:
    """The model as DISTILL.TEACHER says; what the keys do not say is as in ``teacher``."""
    keys = cfg.DISTILL.TEACHER
    return FrozenTeacher(
        model,
        swap_channels=teacher.swap_channels,
        layout=keys.LAYOUT,
        compiled=keys.COMPILE,
        precision=keys.PRECISION,
        fingerprint=teacher.fingerprint,
        cache=cache,
    )


def _tame(model: nn.Module) -> nn.Module:
    """Keep the features of a deep random network of order 1: let each block change them little."""
    for module in model.modules():
        if isinstance(module, BottleneckBlock):
            module.conv3.norm.weight.data.fill_(0.2)
    return model


def synthetic_batches(
    cfg: CfgNode, size: tuple[int, int], images: int, boxes: int, count: int = 1
) -> list[list[dict]]:
    """Batches of noise images with random boxes, a fifth to half of the image's sides long.

    Args:
        size: height and width in pixels.
        images: number of images in a batch.
        boxes: number of boxes in an image.
        count: number of batches.
    """
    generator = torch.Generator().manual_seed(0)
    (height, width), classes = size, num_classes(cfg)
    scale = torch.tensor([width, height, width, height])

    def image() -> dict:
        sides = 0.2 + 0.3 * torch.rand(boxes, 2, generator=generator)
        low = torch.rand(boxes, 2, generator=generator) * (1 - sides)
        truth = Instances(size, gt_boxes=Boxes(torch.cat([low, low + sides], dim=1) * scale))
        truth.gt_classes = torch.randint(classes, (boxes,), generator=generator)
        pixels = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        return {"image": pixels, "instances": truth, "height": height, "width": width}

    return [[image() for _ in range(images)] for _ in range(count)]


def real_batches(cfg: CfgNode, count: int = 4) -> list[list[dict]]:
    """The first batches of DATASETS.TRAIN, loaded in this process."""
    register_custom_datasets(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0
    return list(islice(iter(DistillTrainer.build_train_loader(cfg)), count))
