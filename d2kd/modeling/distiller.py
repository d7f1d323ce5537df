# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The meta-architecture that a frozen teacher and a trainable student share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn

from ..config.validation import check_config
from ..structures import StepRecord
from ..utils.rng_state import get_random_state
from .build import build_student, build_teacher, read_teacher_config
from .build_losses import build_distill_losses, union_of_requires
from .class_names import check_class_names, teacher_class_names
from .compose import check_composed, compose_losses, compose_teacher, student_facts
from .loss_hooks import LOSS_PREFIX, LossHook, StepHook, TermsHook
from .paired_forward.registry import PairForward, RequiredOutputs, get_paired_forward
from .teacher import FrozenTeacher

__all__ = ["Distiller"]


def _without_pictures(cfg: CfgNode) -> CfgNode:
    """VIS_PERIOD is a hook's (``VisPeriodHook``): Detectron2's own drawing moves random streams."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.VIS_PERIOD = 0
    return cfg


@META_ARCH_REGISTRY.register()
class Distiller(nn.Module):
    """Trains a student on its own losses plus distillation losses that hooks compute.

    Only what ``forward`` returns is summed, scaled by AMP and seen by DDP, so the loss hooks run
    inside it: they are registered here by name, and each is called with its loss module and the
    step as both detectors saw it. In eval mode this is the student and nothing else.

    Attributes:
        last_step: what the latest training forward saw and gave; None before the first.
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: FrozenTeacher,
        distill_losses: nn.ModuleDict,
        forward_pair: PairForward,
        proposals: str = "student",
        cross_head: int = 0,
        schedules: Mapping[str, ParamScheduler] | None = None,
    ):
        """
        Args:
            student: the detector to train, from ``build_student``.
            teacher: frozen, complete.
            distill_losses: loss name -> module with ``requires`` and ``forward(step)``, which
                returns LossTerms.
            forward_pair: runs both on a batch (``get_paired_forward``).
            proposals: "student" or "union"; two-stage detectors only.
            cross_head: how many of the last convolutions of the teacher's head the student's head
                features go through; dense detectors only.
            schedules: loss name -> factor over the training's progress, for
                ``d2kd.engine.build_composed_hooks``; a cfg has its own.
        """
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.distill_losses = distill_losses
        self.forward_pair = forward_pair
        requires = union_of_requires(distill_losses.values())
        self.required = RequiredOutputs(requires, proposals, cross_head)
        self._loss_hooks: dict[str, LossHook] = {}
        self._terms_hook: TermsHook | None = None
        self._step_hook: StepHook | None = None
        self._finished: set[str] = set()
        self.schedules = dict(schedules or {})
        teacher.reuse_student_inputs(student)
        self.last_step: StepRecord | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Build and check both networks and the losses."""
        check_config(cfg)
        forward_pair = get_paired_forward(cfg)
        teacher_cfg = read_teacher_config(cfg)
        student = build_student(_without_pictures(cfg))
        # The student's random streams must not depend on its having a teacher: a distilled run
        # and its baseline with the same seed start alike and see the same batches. Weights are
        # drawn on the CPU; forking a GPU's stream would open every GPU in every process.
        with torch.random.fork_rng(devices=[]):
            node = cfg.DISTILL.TEACHER
            teacher = build_teacher(
                teacher_cfg,
                cfg.INPUT.FORMAT,
                layout=node.LAYOUT,
                compiled=node.COMPILE,
                precision=node.PRECISION,
                cached_by=cfg,
            )
            losses = build_distill_losses(cfg, teacher_cfg, student, teacher.model)
        classes = teacher_class_names(cfg, teacher_cfg, teacher.classes)
        check_class_names(cfg, classes, union_of_requires(losses.values()))
        return {
            "student": student,
            "teacher": teacher,
            "distill_losses": losses,
            "forward_pair": forward_pair,
            "proposals": cfg.DISTILL.PROPOSALS,
            "cross_head": cfg.DISTILL.CROSS_HEAD,
        }

    @classmethod
    def compose(
        cls,
        *,
        student: nn.Module,
        teacher: nn.Module,
        losses: Mapping[str, Any],
        proposals: str = "student",
        cross_head: int = 0,
        datasets: Sequence[str] = (),
    ) -> "Distiller":
        """Build and check the pair from parts, without any cfg.

        Args:
            student: the detector to train, with its starting weights or to be loaded later.
            teacher: a detector with its weights loaded, from ``load_teacher`` or any other.
            losses: name -> a ``DistillLoss``, its parts as a sequence (loss, weight, schedule), or
                the loss alone: a module, or ``feature_loss(...)``.
            proposals, cross_head: of the constructor.
            datasets: names of registered training sets, whose classes are compared with those that
                the teacher's checkpoint names.

        Raises:
            ConfigError, PairMismatchError: a loss does not fit the detectors, or they do not fit
                each other in what the losses compare.
        """
        frozen = compose_teacher(student, teacher)
        modules, schedules = compose_losses(losses, student, frozen.model)
        options: dict[str, Any] = {"proposals": proposals, "cross_head": cross_head}
        cfg = student_facts(student, modules, datasets=datasets, **options)
        check_composed(cfg, student, frozen, modules)
        check_class_names(cfg, frozen.classes, union_of_requires(modules.values()))
        return cls(
            student=student,
            teacher=frozen,
            distill_losses=modules,
            forward_pair=get_paired_forward(cfg),
            schedules=schedules,
            **options,
        )

    @property
    def device(self) -> torch.device:
        """The student's device, which Detectron2 asks the model for."""
        return self.student.device

    def register_loss_hook(self, name: str, hook: LossHook) -> None:
        """Let ``hook`` compute the distillation loss ``name`` in every training forward."""
        if name not in self.distill_losses:
            raise ValueError(
                f"no distillation loss {name!r}; there are {list(self.distill_losses)}"
            )
        self._loss_hooks[name] = hook
        self._finished.discard(name)

    def unregister_loss_hook(self, name: str) -> None:
        """Stop computing the distillation loss ``name``."""
        self._loss_hooks.pop(name, None)

    def register_terms_hook(self, hook: TermsHook | None) -> None:
        """Let ``hook`` see, and scale, what all loss hooks returned; None: nobody does."""
        self._terms_hook = hook

    def register_step_hook(self, hook: StepHook | None) -> None:
        """Let ``hook`` look at every step, without gradients, after its losses; None: nobody does.

        It must leave the step, the networks and the random streams as they are.
        """
        self._step_hook = hook

    def finish_loss(self, name: str) -> None:
        """Say that the loss ``name`` will be 0 until a hook is registered for it again.

        Once all are, the teacher no longer runs, unless the student is trained on its proposals.
        """
        self._finished.add(name)

    def forward(self, batch: list[dict]) -> Any:
        """Losses in training (dict of scalars), the student's detections in eval mode."""
        if not self.training:
            return self.student(batch)
        self.last_step = StepRecord(batch, get_random_state())
        if self._finished == set(self.distill_losses) and self.required.proposals == "student":
            losses: dict[str, Tensor] = self._forward_without_teacher(batch)
            per_level: dict[str, dict[str, Tensor]] = {}
        else:
            losses, per_level = self._forward_with_teacher(batch)
        detached = {name: loss.detach() for name, loss in losses.items()}
        self.last_step = dataclasses.replace(
            self.last_step, losses=detached, losses_per_level=per_level
        )
        return losses

    def _forward_with_teacher(
        self, batch: list[dict]
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """All losses, and the distillation losses' terms by level."""
        losses, step = self.forward_pair(self.student, self.teacher, batch, self.required)
        modules = self.distill_losses.items()
        found = {name: self._get_hook(name)(module, step) for name, module in modules}
        if self._terms_hook:
            found = self._terms_hook(losses, found, step)
        if self._step_hook:
            with torch.no_grad():
                self._step_hook(batch, step)
        losses.update((LOSS_PREFIX + name, terms.total) for name, terms in found.items())
        return losses, {name: terms.per_level for name, terms in found.items()}

    def _forward_without_teacher(self, batch: list[dict]) -> dict[str, Tensor]:
        """The same keys, and zeros that keep every adapter in the graph: DDP waits for them all."""
        losses = self.student(batch)
        zero = sum(losses.values()).detach() * 0
        for name, module in self.distill_losses.items():
            losses[LOSS_PREFIX + name] = sum((p.sum() * 0 for p in module.parameters()), zero)
        return losses

    def _get_hook(self, name: str) -> LossHook:
        if name not in self._loss_hooks:
            raise RuntimeError(
                f"no hook computes the distillation loss {name!r}: register "
                "d2kd.engine.build_distill_hooks(cfg) with the trainer, as DistillTrainer does"
            )
        return self._loss_hooks[name]
