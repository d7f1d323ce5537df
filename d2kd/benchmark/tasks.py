# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The tasks that are timed: steps of training, the teacher's parts, each loss on its own."""

import dataclasses
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..engine import DistillTrainer
from ..modeling.paired_forward.dense import box_maps, class_logits
from ..structures import DetectorOutputs, DistillStep
from .networks import Pair

__all__ = [
    "Recorded",
    "Task",
    "adapters_task",
    "floor_and_step",
    "loss_task",
    "record_batches",
    "teacher_full",
    "teacher_needed",
    "train_step",
]

Task = Callable[[int], object]


@dataclasses.dataclass
class Recorded:
    """What both detectors made of one batch, and what the teacher's box head was asked.

    Attributes:
        step: the student's tensors are leaves that want gradients.
        regions: boxes of each image; empty if the teacher's box head did not run.
    """

    step: DistillStep
    regions: list[Boxes]


def record_batches(pair: Pair, batches: list[list[dict]]) -> list[Recorded]:
    """Run every batch once under all losses and keep what the losses were given."""
    model, seen, found = pair.distiller(list(pair.losses)), [], []
    heads = getattr(pair.optimized_teacher.model, "roi_heads", None)
    hook = heads and heads.box_pooler.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[1])
    )
    for batch in batches:
        seen.clear()
        torch.manual_seed(0)
        with EventStorage():
            _, step = model.forward_pair(model.student, model.teacher, batch, model.required)
        found.append(Recorded(_with_leaves(step), seen[0] if seen else []))
    if hook:
        hook.remove()
    return found


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _with_leaves(step: DistillStep) -> DistillStep:
    ours = {}
    for field in dataclasses.fields(DetectorOutputs):
        value = getattr(step.student, field.name)
        if isinstance(value, dict):
            ours[field.name] = {name: _leaf(x) for name, x in value.items()}
        elif value is not None:
            ours[field.name] = _leaf(value)
    return dataclasses.replace(step, student=DetectorOutputs(**ours))


def train_step(cfg: CfgNode, model: nn.Module, batches: list[list[dict]]) -> Task:
    """Forward, backward and the optimizer's step at learning rate 0, which costs what others do."""
    optimizer = DistillTrainer.build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    amp = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE != "cpu"

    def run(turn: int) -> None:
        with EventStorage(), torch.autocast("cuda", enabled=amp):
            losses = sum(model(batches[turn % len(batches)]).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()

    return run


def floor_and_step(
    pair: Pair, batches: list[list[dict]], wrap: Callable[[nn.Module], nn.Module] = lambda x: x
) -> dict[str, Task]:
    """Plain student, needed parts of the teacher, and distilled step under all losses.

    Args:
        wrap: put around the models that are trained.
    """
    recorded, names = record_batches(pair, batches), list(pair.losses)
    regions, requires = [now.regions for now in recorded], pair.requires(names)
    return {
        "student_step_s": train_step(pair.cfg, wrap(pair.stock), batches),
        "teacher_needed_s": teacher_needed(
            pair.cfg, pair.teacher.model, requires, batches, regions
        ),
        "distilled_step_s": train_step(pair.cfg, wrap(pair.distiller(names)), batches),
    }


def teacher_needed(
    cfg: CfgNode,
    model: nn.Module,
    requires: frozenset[str],
    batches: list[list[dict]],
    regions: list[list[Boxes]],
) -> Task:
    """The teacher's forward of what ``requires`` names and nothing else.

    Args:
        cfg: the student's.
        model: the teacher's detector.
        regions: of each batch, the boxes in each image that a two-stage teacher answers for.
    """
    head = _rcnn_parts if hasattr(model, "roi_heads") else _dense_parts

    @torch.no_grad()
    def run(turn: int) -> None:
        index = turn % len(batches)
        images = model.preprocess_image(batches[index])
        features = model.backbone(images.tensor)
        if cfg.DISTILL.PROPOSALS == "union":
            model.proposal_generator(images, features)
        head(model, features, requires, regions[index])

    return run


def _rcnn_parts(
    model: nn.Module, features: dict[str, Tensor], requires: frozenset[str], regions: list[Boxes]
) -> None:
    if "dense_logits" in requires:
        rpn = model.proposal_generator
        for name in rpn.in_features:
            rpn.rpn_head.objectness_logits(rpn.rpn_head.conv(features[name]))
    if requires & {"logits", "deltas"}:
        heads = model.roi_heads
        pooled = heads.box_pooler([features[name] for name in heads.box_in_features], regions)
        heads.box_predictor(heads.box_head(pooled))


def _dense_parts(
    model: nn.Module, features: dict[str, Tensor], requires: frozenset[str], regions: list[Boxes]
) -> None:
    levels = [features[name] for name in getattr(model, "head_in_features", [])]
    if requires & {"dense_logits", "logits"}:
        class_logits(model.head, levels)
    if requires & {"deltas", "box_bins"}:
        box_maps(model.head, levels)


def teacher_full(model: nn.Module, batches: list[list[dict]]) -> Task:
    """The teacher's inference as a stand-alone detector, with NMS and boxes."""

    @torch.no_grad()
    def run(turn: int) -> None:
        model(batches[turn % len(batches)])

    return run


def loss_task(module: nn.Module, recorded: list[Recorded]) -> Task:
    """One loss's forward and backward, to its adapters and the student's tensors."""

    def run(turn: int) -> None:
        _forget_gradients(module, recorded)
        module(recorded[turn % len(recorded)].step).backward()

    return run


def _forget_gradients(module: nn.Module, recorded: list[Recorded]) -> None:
    module.zero_grad()
    for now in recorded:
        for value in vars(now.step.student).values():
            for x in value.values() if isinstance(value, dict) else [value]:
                if x is not None:
                    x.grad = None


def adapters_task(module: nn.Module, recorded: list[Recorded]) -> Task:
    """Forward and backward of a feature loss's adapters alone: no implementation can spare them."""
    gradients: dict[str, Tensor] = {}

    def run(turn: int) -> None:
        _forget_gradients(module, recorded)
        features = recorded[turn % len(recorded)].step.student.features
        out = {name: layer(features[name]) for name, layer in module.adapters.items()}
        for name, x in out.items():
            if name not in gradients or gradients[name].shape != x.shape:
                gradients[name] = torch.rand_like(x)
        learned = [name for name in out if len(list(module.adapters[name].parameters()))]
        torch.autograd.backward([out[n] for n in learned], [gradients[n] for n in learned])

    return run
