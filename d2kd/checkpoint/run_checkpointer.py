# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The checkpointer of a run: it writes whole files and resumes only what fits the config."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from ..utils.errors import ResumeError
from .atomic_write import AtomicPathManager
from .fingerprint import ClassNames, ConfigFingerprint, TeacherFingerprint, describe_changes
from .last_checkpoint import find_last
from .output_dir import warn_if_used
from .weights import UnwrappingCheckpointer, read_weights, resolve_weights

__all__ = ["RunCheckpointer", "save_final", "save_step"]


def save_step(checkpointer: Checkpointer, iteration: int) -> None:
    """Write the checkpoint of a step, named as Detectron2's PeriodicCheckpointer names it.

    Args:
        iteration: number of the step, from 0.
    """
    checkpointer.save(f"model_{iteration:07d}", iteration=iteration)


def save_final(checkpointer: Checkpointer, iteration: int) -> None:
    """Write the checkpoint of a training's last step, as Detectron2's PeriodicCheckpointer does.

    Args:
        iteration: number of the step, from 0.
    """
    checkpointer.save("model_final", iteration=iteration)


class RunCheckpointer(UnwrappingCheckpointer):
    """DetectionCheckpointer of the student, which refuses a checkpoint that does not fit.

    It does not resume a baseline as a distilled run or the reverse, nor either with another network
    or optimizer. Nothing has been loaded when it refuses.

    Attributes:
        resumed: whether the last ``resume_or_load`` found a checkpoint of this run.
    """

    def __init__(
        self,
        student: nn.Module,
        save_dir: str,
        *,
        trainer: Any,
        config: ConfigFingerprint,
        classes: Sequence[str] = (),
        distill_losses: nn.Module | None = None,
        teacher: TeacherFingerprint | None = None,
    ):
        """
        Args:
            student: not wrapped in DistributedDataParallel.
            save_dir: OUTPUT_DIR.
            trainer: has the optimizer and saves its state.
            config: the values of this run's config.
            classes: names of the student's classes; empty if they are not known.
            distill_losses: with the adapters' weights; None for a baseline.
            teacher: the fingerprint of the teacher; None for a baseline.
        """
        # Before the trainer: nothing has changed when the classes are refused.
        parts = {"classes": ClassNames(classes), "trainer": trainer, "config": config}
        if teacher is not None:
            parts |= {"distill_losses": distill_losses, "teacher": teacher}
        super().__init__(student, save_dir, **parts)
        self.path_manager = AtomicPathManager()
        self.resumed = False
        self._trainer, self._config, self._teacher = trainer, config, teacher
        self._modules = {"model": student}
        if distill_losses is not None:
            self._modules["distill_losses"] = distill_losses

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint of the run if there is one and ``resume``, or else weights.

        To be called by all processes at once.

        Args:
            path: MODEL.WEIGHTS, "" for none.
            resume: whether to continue the run in ``save_dir``.

        Raises:
            ResumeError: the last checkpoint cannot be used.
            WeightsError: MODEL.WEIGHTS cannot be used.
        """
        self.resumed = resume and find_last(self.save_dir) is not None
        if not self.resumed:
            if comm.is_main_process():
                warn_if_used(self.save_dir)
            if path:
                resolve_weights(path, "MODEL.WEIGHTS")
                with read_weights("MODEL.WEIGHTS", path):
                    return super().resume_or_load(path, resume=resume)
        return super().resume_or_load(path, resume=resume)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """Check that the checkpoint fits before anything of it is loaded.

        Detectron2 loads the model first. It has no public method that sees the content before.
        """
        if self.resumed:
            self._check_kind("teacher" in checkpoint)
            if self._teacher is not None:
                self._teacher.load_state_dict(checkpoint["teacher"])
            self._check_fits(checkpoint)
        return super()._load_model(checkpoint)

    def _check_kind(self, was_distilled: bool) -> None:
        """Refuse to resume a baseline as a distilled run, and the reverse.

        Args:
            was_distilled: the checkpoint has a teacher's fingerprint.

        Raises:
            ResumeError: says how to set DISTILL.ENABLED.
        """
        if was_distilled == (self._teacher is not None):
            return
        kind = "under a teacher" if was_distilled else "without a teacher"
        raise ResumeError(
            f"the run in OUTPUT_DIR {self.save_dir} was trained {kind}, and DISTILL.ENABLED is "
            f"{not was_distilled}: set DISTILL.ENABLED {was_distilled} to resume that run, or set "
            "another OUTPUT_DIR for this one"
        )

    def _check_fits(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what would fail later, in PyTorch's words or at the first step.

        Raises:
            ResumeError: names the keys that have changed.
        """
        config = self._config.values
        problems = [
            problem
            for name, module in self._modules.items()
            for problem in _tensor_problems(checkpoint.get(name, {}), module, name)
        ]
        problems += _optimizer_problems(checkpoint, self._trainer.optimizer, config)
        if not problems:
            return
        changes = describe_changes(checkpoint.get("config", {}), config)
        unknown = "  MODEL.*, SOLVER.* or DISTILL.* (the checkpoint holds no keys to compare with)"
        lines = ["the last checkpoint of OUTPUT_DIR does not fit this config:", *problems]
        lines.append("Set these keys back, or set another OUTPUT_DIR:")
        raise ResumeError("\n".join([*lines, *(changes or [unknown])]))


def _tensor_problems(saved: dict[str, Any], module: nn.Module, name: str) -> Iterator[str]:
    """Parameters that are absent or have another shape; absent buffers are computed again."""
    wrong = [
        (key, tuple(saved[key].shape) if key in saved else "absent", tuple(parameter.shape))
        for key, parameter in module.named_parameters()
        if key not in saved or saved[key].shape != parameter.shape
    ]
    if wrong:
        key, old, new = wrong[0]
        yield f"  {len(wrong)} tensors of {name!r}, first {key}: {old} there, {new} here"


def _optimizer_problems(
    checkpoint: dict[str, Any], optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> Iterator[str]:
    saved = checkpoint.get("trainer", {}).get("_trainer")
    if saved is None:
        yield "  it holds no optimizer, as those of Detectron2 0.6: start again, from MODEL.WEIGHTS"
        return
    groups = saved["optimizer"]["param_groups"]
    was, now = "ADAMW" if "betas" in groups[0] else "SGD", config["SOLVER.OPTIMIZER"]
    if was != now:
        yield f"  SOLVER.OPTIMIZER was {was!r}, is {now!r}"
    sizes = [[len(group["params"]) for group in x] for x in (groups, optimizer.param_groups)]
    if sizes[0] != sizes[1]:
        old, new = (f"{sum(x)} parameters in {len(x)} groups" for x in sizes)
        yield f"  the optimizer: {old} there, {new} here"
    if config["SOLVER.AMP.ENABLED"] and "grad_scaler" not in saved:
        yield "  SOLVER.AMP.ENABLED was False, is True"
