# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The tasks that are timed: training steps, the teacher's parts, and each loss on its own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..config.detectors import get_detector
from ..engine.trial_step import TrialStep
from ..modeling import FrozenTeacher
from ..modeling.paired_forward import dense, rcnn
from ..modeling.paired_forward.box_coders import box_coder_of
from ..modeling.paired_forward.box_heads import first_predictor, pooler_of
from ..modeling.paired_forward.registry import RequiredOutputs
from ..structures import DetectorOutputs, DistillStep
from .networks import Pair

__all__ = [
    "ALL",
    "Recorded",
    "Task",
    "adapters_task",
    "build_tasks",
    "lower_bound_and_step",
    "loss_task",
    "record_batches",
    "teacher_full",
    "teacher_needed",
    "train_step",
]

# Called with the number of the round.
Task = Callable[[int], object]
# The name of a task's variant with every enabled loss; others bear one loss's name.
ALL = "all"


def build_tasks(pair: Pair, batches: list[list[dict]], alone: bool = True) -> dict[str, Task]:
    """Everything that is timed, by name.

    Args:
        alone: also time steps with each loss alone.
    """
    recorded, names = record_batches(pair, batches), list(pair.losses)
    regions, teacher = [now.regions for now in recorded], pair.teacher
    sets = {ALL: names, **({name: [name] for name in names} if alone and len(names) > 1 else {})}
    tasks = {"student": train_step(pair.cfg, pair.stock, batches)}
    tasks["teacher_full"] = teacher_full(teacher.model, batches)
    for key, chosen in sets.items():
        requires = pair.requires(chosen)
        tasks[f"needed {key}"] = teacher_needed(pair.cfg, teacher, requires, batches, regions)
        tasks[f"distilled {key}"] = train_step(pair.cfg, pair.distiller(chosen), batches)
    for name in names:
        tasks[f"loss {name}"] = loss_task(pair.losses[name], recorded)
    if "feature" in names and len(list(pair.losses["feature"].parameters())):
        tasks["adapters"] = adapters_task(pair.losses["feature"], recorded)
    return tasks


@dataclasses.dataclass
class Recorded:
    """The outputs of both detectors on one batch, and the boxes of the teacher's box head.

    Attributes:
        step: the student's tensors in it are leaves that require gradients.
        regions: None if the teacher's box head did not run.
    """

    step: DistillStep
    regions: rcnn.Regions | None


def record_batches(pair: Pair, batches: list[list[dict]]) -> list[Recorded]:
    """Run every batch once with all losses and keep what the losses were given."""
    model, seen, found = pair.distiller(list(pair.losses)), [], []
    hook = coder = None
    on_regions = pair.requires(list(pair.losses)) & {"logits", "deltas"}
    if get_detector(pair.cfg).two_stage and on_regions:
        pooler = pooler_of(pair.optimized_teacher.model.roi_heads)
        coder = box_coder_of(getattr(*first_predictor(pair.student.roi_heads)))
        hook = pooler.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    for batch in batches:
        seen.clear()
        torch.manual_seed(0)
        with EventStorage():
            _, step = model.forward_pair(model.student, model.teacher, batch, model.required)
        sizes = [tuple(x["image"].shape[-2:]) for x in batch]
        # A cascade's later stages are called on what it made of them.
        regions = rcnn.Regions(seen[0], step.labels, sizes, coder) if seen else None
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
    """A training step at learning rate 0, on the batches in turn."""
    step = TrialStep(cfg, model)
    return lambda turn: step(batches[turn % len(batches)])


def lower_bound_and_step(
    pair: Pair, batches: list[list[dict]], wrap: Callable[[nn.Module], nn.Module] = lambda x: x
) -> dict[str, Task]:
    """The two parts of the lower bound, baseline step and needed teacher, and the distilled step.

    Args:
        wrap: applied to the models that are trained, e.g. DistributedDataParallel.
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
    required = RequiredOutputs(requires, cfg.DISTILL.PROPOSALS, cfg.DISTILL.CROSS_HEAD)

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
    teacher: FrozenTeacher, features: dict[str, Tensor], _: Any, __: Any, required: RequiredOutputs
) -> None:
    dense.teacher_outputs(teacher, features, None, required)


def teacher_full(model: nn.Module, batches: list[list[dict]]) -> Task:
    """The teacher's whole inference, boxes and NMS included."""

    @torch.no_grad()
    def run(turn: int) -> None:
        model(batches[turn % len(batches)])

    return run


def loss_task(module: nn.Module, recorded: list[Recorded]) -> Task:
    """One loss's forward, and its backward to the adapters and the student's outputs."""

    def run(turn: int) -> None:
        _clear_gradients(module, recorded)
        module(recorded[turn % len(recorded)].step).total.backward()

    return run


def _clear_gradients(module: nn.Module, recorded: list[Recorded]) -> None:
    module.zero_grad()
    for now in recorded:
        for value in vars(now.step.student).values():
            for x in value.values() if isinstance(value, dict) else [value]:
                if x is not None:
                    x.grad = None


def adapters_task(module: nn.Module, recorded: list[Recorded]) -> Task:
    """Forward and backward of a feature loss's adapters alone, which every implementation needs."""
    gradients: dict[str, Tensor] = {}

    def run(turn: int) -> None:
        _clear_gradients(module, recorded)
        features = recorded[turn % len(recorded)].step.student.features
        out = {name: layer(features[name]) for name, layer in module.adapters.items()}
        for name, x in out.items():
            if name not in gradients or gradients[name].shape != x.shape:
                gradients[name] = torch.rand_like(x)
        learned = [name for name in out if len(list(module.adapters[name].parameters()))]
        torch.autograd.backward([out[n] for n in learned], [gradients[n] for n in learned])

    return run
