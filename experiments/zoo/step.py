# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""One training step of a pair, and what must be true of it."""

import copy
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone.regnet import ResBottleneckBlock
from detectron2.modeling.backbone.resnet import BottleneckBlock, DeformBottleneckBlock
from detectron2.utils.events import EventStorage
from torch import nn

from d2kd import DistillTrainer
from d2kd.modeling import Distiller, FrozenTeacher, split_losses
from d2kd.modeling.build_losses import build_distill_losses
from d2kd.modeling.paired_forward.registry import get_paired_forward
from d2kd.utils.errors import D2kdError
from d2kd.utils.text import first_line

__all__ = ["LOSSES", "ROLES", "YES", "pair_of_configs", "tame", "try_step"]

# Column -> what it says.
ROLES = {
    "features": "teacher, features",
    "all": "teacher, all losses",
    "student features": "student, features",
    "student all": "student, all losses",
}
LOSSES = {"features": ["feature"], "all": ["feature", "cls", "reg"]}
YES = "yes"
# The configs of student and teacher, and both networks.
Pair = tuple[CfgNode, CfgNode, nn.Module, FrozenTeacher]


def tame(model: nn.Module) -> nn.Module:
    """Keep the features of a deep random network of order 1: let each block change them little."""
    for module in model.modules():
        if isinstance(module, (BottleneckBlock, DeformBottleneckBlock)):
            module.conv3.norm.weight.data.fill_(0.2)
        elif isinstance(module, ResBottleneckBlock):
            module.f.c_bn.weight.data.fill_(0.2)
    return model


def pair_of_configs(
    cfg: CfgNode, teacher_cfg: CfgNode, student: nn.Module, teacher: FrozenTeacher, names: list
) -> Distiller:
    """The pair with the losses of the student's config."""
    cfg.DISTILL.LOSSES = names
    return Distiller(
        student=student,
        teacher=teacher,
        distill_losses=build_distill_losses(cfg, teacher_cfg, student, teacher.model),
        forward_pair=get_paired_forward(cfg),
    )


def try_step(make: Callable[..., Distiller], pair: Pair, names: list[str]) -> str:
    """YES, or why a pair cannot take a step.

    Args:
        make: of the pair and the names, as ``pair_of_configs``.
        names: of the losses.
    """
    cfg, _, student, _ = pair
    try:
        _step(cfg, student, make(*pair, names), names)
    except D2kdError as error:
        return first_line(error)
    except NotImplementedError as error:
        return f"{first_line(error).partition('!')[0]}: it has no backward there"
    return YES


def _step(cfg: CfgNode, student: nn.Module, model: Distiller, names: list[str]) -> None:
    """A training step under these losses; raises where it is not what it must be."""
    model.train()
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
