# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The meta-architecture in which a frozen teacher and a trainable student live together."""

from collections.abc import Callable

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ..config.defaults import PROPOSALS
from ..structures import DistillStep
from .build import build_student, build_teacher, read_teacher_config
from .build_losses import build_distill_losses
from .compatibility import check_pair
from .paired_forward.registry import PairForward, RequiredOutputs, get_paired_forward
from .step_record import StepRecord
from .teacher import FrozenTeacher

__all__ = ["LOSS_PREFIX", "Distiller", "LossHook"]

# Before a distillation loss's name in what ``forward`` returns; the console prints "loss" ones.
LOSS_PREFIX = "loss_distill_"
# Called with (loss module, step); returns {LOSS_PREFIX + name: scaled loss}.
LossHook = Callable[[nn.Module, DistillStep], dict[str, Tensor]]


@META_ARCH_REGISTRY.register()
class Distiller(nn.Module):
    """Trains a student on its own losses plus distillation losses that hooks compute.

    Only what ``forward`` returns is summed, scaled by AMP and seen by DDP, so the loss hooks run
    inside it: they are registered here by name, and each is called with its loss module and the
    step both detectors answered for. In eval mode this is the student and nothing else.
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
    ):
        """
        Args:
            student: the detector to train, from ``build_student``.
            teacher: frozen, complete.
            distill_losses: loss name -> module with ``requires`` and ``forward(step)``.
            forward_pair: runs both on a batch (``get_paired_forward``).
            proposals: "student" or "union"; two-stage detectors only.
        """
        super().__init__()
        if proposals not in PROPOSALS:
            raise ValueError(f"DISTILL.PROPOSALS is {proposals!r}: set it to one of {PROPOSALS}")
        self.student = student
        self.teacher = teacher
        self.distill_losses = distill_losses
        self.forward_pair = forward_pair
        requires = frozenset().union(*(loss.requires for loss in distill_losses.values()))
        self.required = RequiredOutputs(requires, proposals)
        self._loss_hooks: dict[str, LossHook] = {}
        self._finished: set[str] = set()
        teacher.reuse_student_inputs(student)
        self.latest: StepRecord | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        forward_pair = get_paired_forward(cfg.MODEL.META_ARCHITECTURE)
        teacher_cfg = read_teacher_config(cfg)
        student = build_student(cfg)
        # The student's random streams must not depend on its having a teacher: a distilled run
        # and its baseline with the same seed start alike and see the same batches. Weights are
        # drawn on the CPU; forking a GPU's stream would open every GPU in every process.
        with torch.random.fork_rng(devices=[]):
            teacher = build_teacher(teacher_cfg, cfg.INPUT.FORMAT)
            node = cfg.DISTILL.TEACHER
            teacher.arrange(node.LAYOUT, node.COMPILE, node.PRECISION)
            losses = build_distill_losses(cfg, student, teacher.model)
        requires = frozenset().union(*(loss.requires for loss in losses.values()))
        check_pair(cfg, teacher_cfg, requires)
        return {
            "student": student,
            "teacher": teacher,
            "distill_losses": losses.to(cfg.MODEL.DEVICE),
            "forward_pair": forward_pair,
            "proposals": cfg.DISTILL.PROPOSALS,
        }

    @property
    def device(self) -> torch.device:
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
        self._loss_hooks.pop(name, None)

    def finish_loss(self, name: str) -> None:
        """Say that the loss ``name`` will be 0 until a hook is registered for it again.

        Once all are, the teacher no longer runs, unless the student is trained on its proposals.
        """
        self._finished.add(name)

    def forward(self, batch: list[dict]):
        """Losses in training (dict of scalars), the student's detections in eval mode."""
        if not self.training:
            return self.student(batch)
        self.latest = StepRecord(batch)
        if self._finished == set(self.distill_losses) and self.required.proposals == "student":
            return self._forward_without_teacher(batch)
        losses, step = self.forward_pair(self.student, self.teacher, batch, self.required)
        for name, loss_module in self.distill_losses.items():
            losses.update(self._get_hook(name)(loss_module, step))
        self.latest.losses = {name: loss.detach() for name, loss in losses.items()}
        self.latest.by_level = {
            name: getattr(module, "by_level", {}) for name, module in self.distill_losses.items()
        }
        return losses

    def _forward_without_teacher(self, batch: list[dict]) -> dict[str, Tensor]:
        """The same keys, and zeros that keep every adapter in the graph: DDP waits for them all."""
        losses = self.student(batch)
        zero = sum(losses.values()).detach() * 0
        for name, module in self.distill_losses.items():
            nothing = sum((p.sum() * 0 for p in module.parameters()), zero)
            losses[LOSS_PREFIX + name] = nothing
        self.latest.losses = {name: loss.detach() for name, loss in losses.items()}
        return losses

    def _get_hook(self, name: str) -> LossHook:
        if name not in self._loss_hooks:
            raise RuntimeError(
                f"no hook computes the distillation loss {name!r}: register "
                "d2kd.engine.build_distill_hooks(cfg) with the trainer, as DistillTrainer does"
            )
        return self._loss_hooks[name]
