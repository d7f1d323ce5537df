# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""DefaultTrainer with a teacher: what is built, registered, saved and resumed."""

import logging
import weakref
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import nn

from ..checkpoint import (
    add_resume_hooks,
    build_checkpointer,
    build_run_state,
    check_start,
    describe_frozen_random,
    describe_other_classes,
    end_if_over,
    evaluate_step_before,
    fingerprint_tensors,
    init_from_teacher,
    remove_unfinished,
    starting_names,
    write_student_config,
)
from ..data import build_mapper, build_train_loader, class_names
from ..modeling.build import build_teacher, check_parts, read_teacher_config
from .base_trainer import BaseTrainer
from .final_evaluation import FinalEvaluation, measure_student_alone
from .hooks import build_distill_hooks
from .nonfinite import report_nonfinite_loss
from .stop_on_signal import StopOnSignal, StoppableLoader

__all__ = ["DistillTrainer"]

logger = logging.getLogger(__name__)


class DistillTrainer(FinalEvaluation, BaseTrainer):
    """Trains the student of a config, under its teacher if DISTILL.ENABLED.

    A checkpoint holds the student alone under stock names; what resuming needs besides, such as
    the adapters, is beside it in the same file. ``student.yaml`` in OUTPUT_DIR is the config with
    which plain Detectron2 builds and loads the student.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        self.checkpointer = self._build_checkpointer()
        hooks = self.build_hooks()
        self._run_state = build_run_state(self.data_loader, hooks, self.checkpointer.model)
        self.checkpointer.add_checkpointable("run_state", self._run_state)
        self._stop = StopOnSignal(
            before_save=self._run_state.gather,
            in_evaluation=lambda: self._run_state.evaluation_due,
        )
        hooks = add_resume_hooks(hooks, self.cfg, self._run_state)
        self.register_hooks(self._stop.add_to(hooks))
        if comm.is_main_process():
            remove_unfinished(self.cfg.OUTPUT_DIR)
            self.write_student_config()

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The Distiller, or Detectron2's model if not DISTILL.ENABLED."""
        if not cfg.DISTILL.ENABLED:
            check_parts(cfg)
            return super().build_model(cfg)
        return META_ARCH_REGISTRY.get("Distiller")(cfg)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Detectron2's, which can be resumed, and whose errors name the image."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Detectron2's, whose errors name the image, and which signals stop."""
        mapper = build_mapper(cfg, False)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        return StoppableLoader(loader, dataset_name)

    def _build_checkpointer(self) -> DetectionCheckpointer:
        model, trainer = self.unwrapped_model, weakref.proxy(self)
        if not self.cfg.DISTILL.ENABLED:
            return build_checkpointer(self.cfg, trainer, model, classes=class_names(self.cfg))
        teacher = model.teacher.fingerprint or fingerprint_tensors(model.teacher.model)
        return build_checkpointer(
            self.cfg,
            trainer,
            model.student,
            model.distill_losses,
            teacher,
            classes=class_names(self.cfg),
        )

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks and those of the distillation losses.

        The constructor adds those of resuming and of signals, which need all others.
        """
        hooks = measure_student_alone(super().build_hooks(), self.model)
        self.add_evaluations(hooks)
        if self.cfg.DISTILL.ENABLED:
            # Before the writer, which only the main process has: what they log is written in the
            # same step.
            writers = [i for i, hook in enumerate(hooks) if isinstance(hook, PeriodicWriter)]
            at = writers[0] if writers else len(hooks)
            hooks[at:at] = self.build_loss_hooks()
        return hooks

    def build_loss_hooks(self) -> list[HookBase]:
        """The hooks that compute the distillation losses."""
        return build_distill_hooks(self.cfg)

    def write_student_config(self) -> None:
        """Write student.yaml into OUTPUT_DIR; the main process calls it."""
        write_student_config(self.cfg)

    def before_train(self) -> None:
        """Run all hooks, then continue the random streams, which hooks may have used."""
        super().before_train()
        if self._run_state.restore() and self.cfg.TEST.EVAL_PERIOD > 0:
            # Detectron2 keeps the registered hooks here and has no method that returns them.
            with self._stop.acting_at_once():
                evaluate_step_before(self, self._hooks)
        end_if_over(self, self._hooks, self._run_state)
        self.end_if_stopped()

    def after_step(self) -> None:
        """Run all hooks. If SIGTERM ends the evaluation, its step gets a checkpoint first."""
        with self._stop.saving_if_evaluation_stops():
            super().after_step()

    def after_train(self) -> None:
        """Evaluate last of all; signals stop this evaluation, after training is saved."""
        if self.iter < self.max_iter:  # it has failed, or was interrupted before
            super().after_train()
            return
        try:
            self._stop.before_last_evaluation()
            super().after_train()
        except KeyboardInterrupt:
            self._write_last_metrics()
            logger.info(
                "Interrupted in the evaluation: the training is complete, its checkpoint "
                "model_final.pth is in %s; --eval-only --resume evaluates it",
                self.cfg.OUTPUT_DIR,
            )
            raise

    def _write_last_metrics(self) -> None:
        """Let the writers, which come after the evaluation, write the last step and close."""
        # The writers distinguish the end of training from the last step by this.
        self.storage.iter = self.iter
        # Detectron2 keeps the registered hooks here and has no method that returns them.
        for hook in self._hooks:
            if isinstance(hook, PeriodicWriter):
                hook.after_train()

    def run_step(self) -> None:
        """Run one step; a loss that is not finite is reported with its batch."""
        folder = self.cfg.OUTPUT_DIR
        model, loop = self.unwrapped_model, self._trainer
        with report_nonfinite_loss(
            model, self.iter, folder, self.micro_steps, get_last_step=lambda: loop.last_step
        ):
            super().run_step()

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume the run in OUTPUT_DIR, or start from MODEL.WEIGHTS and DISTILL.STUDENT.INHERIT.

        Raises:
            ResumeError: there is a checkpoint to continue from, but it cannot be used.
            WeightsError: MODEL.WEIGHTS cannot be used, or holds too little of the student.
        """
        super().resume_or_load(resume=resume)
        if self.checkpointer.resumed:
            self._run_state.warn_if_absent()
        else:
            self._start()

    def _start(self) -> None:
        """Check MODEL.WEIGHTS, inherit from the teacher, and warn of what stays random for ever."""
        cfg, student, loaded = self.cfg, self.checkpointer.model, self.checkpointer.loaded
        if loaded:
            check_start(cfg, loaded)
            if describe_other_classes(cfg, loaded):
                logger.warning("%s: heads start from others", describe_other_classes(cfg, loaded))
        prefixes, inherited = cfg.DISTILL.STUDENT.INHERIT, []
        if prefixes:
            inherited = init_from_teacher(student, self._get_teacher(), prefixes)
        frozen = describe_frozen_random(cfg, student, starting_names(loaded, inherited))
        if frozen:
            logger.warning(frozen)

    def state_dict(self) -> dict:
        """The trainer's state with the optimizer, which Detectron2 0.6 leaves out."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Load what ``state_dict`` gave."""
        super().load_state_dict(state)
        self._trainer.load_state_dict(state["_trainer"])

    def _get_teacher(self) -> nn.Module:
        if self.cfg.DISTILL.ENABLED:
            return self.unwrapped_model.teacher.model
        # A baseline starts with the weights and random states of the distilled run of its seed.
        with torch.random.fork_rng(devices=[]):
            return build_teacher(read_teacher_config(self.cfg), self.cfg.INPUT.FORMAT).model
