# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The tasks that are timed: steps of training, the teacher's parts, each loss on its own."""

import dataclasses
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..config.detectors import get_detector
from ..engine import DistillTrainer
from ..modeling import FrozenTeacher
from ..modeling.paired_forward import dense, rcnn
from ..modeling.paired_forward.registry import RequiredOutputs
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
    """What both detectors computed for one batch, and the boxes of the teacher's box head.

    Attributes:
        step: the student's tensors are leaves that want gradients.
        regions: None if the teacher's box head did not run.
    """

    step: DistillStep
    regions: rcnn.Regions | None


def record_batches(pair: Pair, batches: list[list[dict]]) -> list[Recorded]:
    """Run every batch once under all losses and keep what the losses were given."""
    model, seen, found = pair.distiller(list(pair.losses)), [], []
    hook = None
    if get_detector(pair.cfg).two_stage and pair.requires(list(pair.losses)) - {"features"}:
        pooler = pair.optimized_teacher.model.roi_heads.box_pooler
        hook = pooler.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    for batch in batches:
        seen.clear()
        torch.manual_seed(0)
        with EventStorage():
            _, step = model.forward_pair(model.student, model.teacher, batch, model.required)
        regions = rcnn.Regions(seen[0], step.labels) if seen else None
        found.append(Recorded(_with_leaves(step), regions))
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
        "teacher_needed_s": teacher_needed(pair.cfg, pair.teacher, requires, batches, regions),
        "distilled_step_s": train_step(pair.cfg, wrap(pair.distiller(names)), batches),
    }


def teacher_needed(
    cfg: CfgNode,
    teacher: FrozenTeacher,
    requires: frozenset[str],
    batches: list[list[dict]],
    regions: list[rcnn.Regions | None],
) -> Task:
    """The teacher's forward of what ``requires`` names and nothing else.

    Args:
        cfg: the student's.
        teacher: as Detectron2 builds it, in its own layout and the student's precision.
        regions: of each batch, the boxes on which a two-stage teacher's box head runs.
    """
    run_heads = _rcnn_heads if get_detector(cfg).two_stage else _dense_heads
    required = RequiredOutputs(requires, cfg.DISTILL.PROPOSALS)

    def run(turn: int) -> None:
        index = turn % len(batches)
        features = teacher.features(batches[index])
        run_heads(teacher, features, batches[index], regions[index], required)

    return run


def _rcnn_heads(
    teacher: FrozenTeacher,
    features: dict[str, Tensor],
    batch: list[dict],
    regions: rcnn.Regions | None,
    required: RequiredOutputs,
) -> None:
    dense_logits = None
    if required.proposals == "union":
        sizes = [x["image"].shape[-2:] for x in batch]
        _, dense_logits = rcnn.teacher_proposals(teacher, features, sizes)
    rcnn.teacher_outputs(teacher, features, regions, required, dense_logits)


def _dense_heads(
    teacher: FrozenTeacher, features: dict[str, Tensor], _, __, required: RequiredOutputs
) -> None:
    dense.teacher_outputs(teacher, features, None, required)


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
        module(recorded[turn % len(recorded)].step).total.backward()

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
