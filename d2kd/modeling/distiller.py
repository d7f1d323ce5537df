"""The meta-architecture in which a frozen teacher and a trainable student live together."""

from typing import Callable, Dict, List, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ..config import PROPOSALS
from ..structures import DistillStep
from .build import build_student, build_teacher, read_teacher_config
from .build_losses import build_distill_losses
from .checks import check_pair
from .latest import LatestStep
from .observe import Observer, Wanted, get_observer
from .teacher import FrozenTeacher

__all__ = ["Distiller", "LossHook"]

# Called with (loss module, step); returns {"loss_distill_<name>": scaled loss}.
LossHook = Callable[[nn.Module, DistillStep], Dict[str, Tensor]]


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
        observe: Observer,
        proposals: str = "student",
    ):
        """
        Args:
            student: the detector to train, from ``build_student``.
            teacher: frozen, complete.
            distill_losses: loss name -> module with ``requires`` and ``forward(step)``.
            observe: runs both on a batch (``get_observer``).
            proposals: "student" or "union"; two-stage detectors only.
        """
        super().__init__()
        if proposals not in PROPOSALS:
            raise ValueError(f"DISTILL.PROPOSALS is {proposals!r}: set it to one of {PROPOSALS}")
        self.student = student
        self.teacher = teacher
        self.distill_losses = distill_losses
        self.observe = observe
        requires = frozenset().union(*(loss.requires for loss in distill_losses.values()))
        self.want = Wanted(requires, proposals)
        self._loss_hooks: Dict[str, LossHook] = {}
        self.latest: Optional[LatestStep] = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        observe = get_observer(cfg.MODEL.META_ARCHITECTURE)
        teacher_cfg = read_teacher_config(cfg)
        student = build_student(cfg)
        # The student's random streams must not depend on its having a teacher: a distilled run
        # and its baseline with the same seed start alike and see the same batches. Weights are
        # drawn on the CPU; forking a GPU's stream would open every GPU in every process.
        with torch.random.fork_rng(devices=[]):
            teacher = build_teacher(teacher_cfg, cfg.INPUT.FORMAT)
            losses = build_distill_losses(cfg, student, teacher.model)
        requires = frozenset().union(*(loss.requires for loss in losses.values()))
        check_pair(cfg, teacher_cfg, requires)
        return {
            "student": student,
            "teacher": teacher,
            "distill_losses": losses.to(cfg.MODEL.DEVICE),
            "observe": observe,
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

    def unregister_loss_hook(self, name: str) -> None:
        self._loss_hooks.pop(name, None)

    def forward(self, batch: List[dict]):
        """Losses in training (dict of scalars), the student's detections in eval mode."""
        if not self.training:
            return self.student(batch)
        self.latest = LatestStep(batch)
        losses, step = self.observe(self.student, self.teacher, batch, self.want)
        for name, loss_module in self.distill_losses.items():
            losses.update(self._get_hook(name)(loss_module, step))
        self.latest.losses = {name: loss.detach() for name, loss in losses.items()}
        self.latest.by_level = {
            name: getattr(module, "by_level", {}) for name, module in self.distill_losses.items()
        }
        return losses

    def _get_hook(self, name: str) -> LossHook:
        if name not in self._loss_hooks:
            raise RuntimeError(
                f"no hook computes the distillation loss {name!r}: register "
                "d2kd.engine.build_distill_hooks(cfg) with the trainer, as DistillTrainer does"
            )
        return self._loss_hooks[name]
