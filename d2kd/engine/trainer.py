# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""DefaultTrainer with a teacher: what is built, registered, saved and resumed."""

import logging
import os
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicWriter
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from torch import nn

from ..checkpoint.atomic_write import AtomicPathManager, remove_unfinished
from ..checkpoint.fingerprint import ConfigFingerprint
from ..checkpoint.init_from_teacher import init_from_teacher
from ..checkpoint.last_checkpoint import find_last
from ..checkpoint.output_dir import warn_if_used
from ..checkpoint.run_state import (
    RunCheckpointer,
    RunState,
    TeacherFingerprint,
    add_resume_hooks,
    get_loaders,
)
from ..checkpoint.weights import resolve_weights
from ..config.defaults import OPTIMIZERS, plain_config
from ..config.validation import describe_warmup
from ..data import build_mapper
from ..data.resumable_loader import build_train_loader
from ..evaluation import build_evaluator
from ..modeling.build import build_teacher, read_teacher_config
from ..utils.malloc import keep_freed_memory
from .distributed.process_group import data_parallel
from .final_evaluation import FinalEvaluation, measure_student_alone
from .hooks import build_distill_hooks, unwrap
from .interrupt import StopOnInterrupt
from .nonfinite import report_nonfinite_loss
from .train_loop import (
    AccumulatingAMPTrainer,
    AccumulatingTrainer,
    CheckedAMPTrainer,
    CheckedTrainer,
)

__all__ = ["DistillTrainer"]

logger = logging.getLogger(__name__)


class DistillTrainer(FinalEvaluation, DefaultTrainer):
    """Trains the student of a config, under its teacher if DISTILL.ENABLED.

    Checkpoints hold the student alone under stock names; adapters and the teacher's identity lie
    beside it in the same file, for resuming. ``student.yaml`` in OUTPUT_DIR is the config with
    which plain Detectron2 builds and loads the student.
    """

    def __init__(self, cfg: CfgNode):
        keep_freed_memory(cfg.MODEL.DEVICE)
        # DefaultTrainer's own wraps models for GPUs alone; this takes its parts in its order.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        model = data_parallel(model)
        self._trainer = _build_trainer(cfg, model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        if describe_warmup(cfg):
            logger.warning(describe_warmup(cfg))
        self.checkpointer = RunCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())
        self.checkpointer.path_manager = AtomicPathManager()
        self.checkpointer.add_checkpointable("streams", self._streams)
        self.checkpointer.add_checkpointable("keys", ConfigFingerprint(cfg))
        if cfg.DISTILL.ENABLED:
            distiller = unwrap(self.model)
            self.checkpointer.model = distiller.student
            self.checkpointer.add_checkpointable("distill_losses", distiller.distill_losses)
            self.checkpointer.add_checkpointable(
                "teacher", TeacherFingerprint(distiller.teacher.identity)
            )
        if comm.is_main_process():
            remove_unfinished(cfg.OUTPUT_DIR)
            _write_student_config(cfg)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        if not cfg.DISTILL.ENABLED:
            return super().build_model(cfg)
        return META_ARCH_REGISTRY.get("Distiller")(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Detectron2's SGD, or AdamW over the same parameter groups (SOLVER.OPTIMIZER)."""
        if cfg.SOLVER.OPTIMIZER not in OPTIMIZERS:
            raise ValueError(
                f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}: set it to one of {OPTIMIZERS}"
            )
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return super().build_optimizer(cfg, model)
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        return optimizer(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Detectron2's, which can be resumed, and whose errors name the image."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = build_mapper(cfg, False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str):
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, folder)

    def build_hooks(self):
        hooks = [hook for hook in super().build_hooks() if hook is not None]
        hooks = measure_student_alone(hooks, self.model)
        student = getattr(unwrap(self.model), "student", unwrap(self.model))
        self._streams = RunState(get_loaders(self._trainer, hooks), student)
        add_resume_hooks(hooks, self.cfg, self._streams)
        self.add_tta_hook(hooks)
        if self.cfg.DISTILL.ENABLED:
            # Before the writer, which only the main process has: what they log is written in the
            # same step.
            writers = [i for i, hook in enumerate(hooks) if isinstance(hook, PeriodicWriter)]
            at = writers[0] if writers else len(hooks)
            hooks[at:at] = build_distill_hooks(self.cfg)
        self._stop = StopOnInterrupt(before_save=self._streams.collect)
        return [*hooks, self._stop]

    def before_train(self) -> None:
        super().before_train()
        if self._streams.go_on() and self.cfg.TEST.EVAL_PERIOD > 0:
            self._evaluate_step_before()

    def _evaluate_step_before(self) -> None:
        """The run was killed between a checkpoint and the evaluation of the same step."""
        hook = next(hook for hook in self._hooks if isinstance(hook, EvalHook))
        self.iter = self.storage.iter = self.start_iter - 1
        hook.after_step()
        self.iter = self.storage.iter = self.start_iter

    def after_train(self) -> None:
        """With the last evaluation, which Ctrl-C breaks off: all is trained and saved by then."""
        if self.iter < self.max_iter:  # it has failed, or was interrupted before
            super().after_train()
            return
        try:
            self._stop.before_last_evaluation()
            super().after_train()
        except KeyboardInterrupt:
            # What writers tell apart from the last step.
            self.storage.iter = self.iter
            for hook in self._hooks:
                if isinstance(hook, PeriodicWriter):
                    hook.after_train()
            logger.info(
                "Interrupted in the evaluation: the training is complete, its checkpoint "
                "model_final.pth is in %s; --eval-only --resume evaluates it",
                self.cfg.OUTPUT_DIR,
            )
            raise

    def run_step(self) -> None:
        recent = getattr(self._trainer, "recent", ())
        with report_nonfinite_loss(unwrap(self.model), self.iter, self.cfg.OUTPUT_DIR, recent):
            super().run_step()

    def resume_or_load(self, resume: bool = True) -> None:
        """As DefaultTrainer; a fresh start also takes DISTILL.STUDENT.INHERIT's weights.

        Raises:
            ResumeError: there is a checkpoint to go on from, but it cannot be used.
        """
        # Read once more below, after every process has found the same.
        resumed = resume and find_last(self.cfg.OUTPUT_DIR) is not None
        if not resumed and comm.is_main_process():
            warn_if_used(self.cfg.OUTPUT_DIR)
        if self.cfg.MODEL.WEIGHTS and not resumed:
            resolve_weights(self.cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
        super().resume_or_load(resume=resume)
        if resumed:
            self._streams.warn_if_absent()
        prefixes = self.cfg.DISTILL.STUDENT.INHERIT
        if prefixes and not resumed:
            init_from_teacher(self.checkpointer.model, self._get_teacher(), prefixes)

    def state_dict(self) -> dict:
        """With the optimizer, which Detectron2 0.6 leaves out of its checkpoints."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._trainer.load_state_dict(state["_trainer"])

    def _get_teacher(self) -> nn.Module:
        if self.cfg.DISTILL.ENABLED:
            return unwrap(self.model).teacher.model
        # A baseline that starts as its distilled twin does: the same weights, the same streams.
        with torch.random.fork_rng(devices=[]):
            return build_teacher(read_teacher_config(self.cfg), self.cfg.INPUT.FORMAT).model


def _build_trainer(cfg: CfgNode, model: nn.Module, *parts) -> SimpleTrainer:
    """Detectron2's own, unless there are several processes, or several batches a step."""
    half, steps = cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.ACCUMULATE_STEPS
    if steps > 1:
        return (AccumulatingAMPTrainer if half else AccumulatingTrainer)(model, *parts, steps)
    if comm.get_world_size() > 1:
        return (CheckedAMPTrainer if half else CheckedTrainer)(model, *parts)
    return (AMPTrainer if half else SimpleTrainer)(model, *parts)


def _write_student_config(cfg: CfgNode) -> None:
    plain = plain_config(cfg)
    # Wherever the file is read from; addresses of other systems ("s3://") are whole already.
    folder = cfg.OUTPUT_DIR if "://" in cfg.OUTPUT_DIR else os.path.abspath(cfg.OUTPUT_DIR)
    plain.MODEL.WEIGHTS = os.path.join(folder, "model_final.pth")
    PathManager.mkdirs(cfg.OUTPUT_DIR)
    with AtomicPathManager().open(os.path.join(cfg.OUTPUT_DIR, "student.yaml"), "w") as file:
        file.write(plain.dump())
