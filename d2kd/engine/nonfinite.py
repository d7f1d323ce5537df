# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Reports a loss that is not finite: which one, on which level and images, and saves the batch."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from ..modeling import LOSS_PREFIX, Distiller, split_losses
from ..structures import StepRecord
from ..utils.errors import D2kdError
from ..utils.files import atomic_write
from .replay import from_plain, to_plain

__all__ = ["NonFiniteLossError", "report_nonfinite_loss", "read_replay"]


class NonFiniteLossError(D2kdError, FloatingPointError):
    """A loss is infinite or not a number; the message names the loss, iteration and images."""


@contextmanager
def report_nonfinite_loss(
    model: nn.Module,
    iteration: int,
    folder: str,
    micro_steps: Sequence[StepRecord] = (),
    get_last_step: Callable[[], StepRecord | None] | None = None,
) -> Iterator[None]:
    """Report the details where the trainer finds that a loss is not finite.

    The trainer looks at the losses of every step before the optimizer's step (``CheckedTrainer``
    where Detectron2's own does not). As long as they are finite, nothing is read here.

    Args:
        model: a Distiller, or the detector of a baseline.
        iteration: the one that runs inside the context.
        folder: where ``nonfinite_<iteration>.pth`` is written.
        micro_steps: the steps of an iteration of several batches, filled while it runs. The first
            one that is not finite is reported.
        get_last_step: gives the latest step of a baseline, which a Distiller keeps itself.

    Raises:
        NonFiniteLossError: instead of the FloatingPointError.
    """
    try:
        yield
        return
    except FloatingPointError as error:
        failed = error
    if isinstance(model, Distiller):
        last_step = model.last_step
    else:
        last_step = get_last_step() if get_last_step else None
    if last_step is None:
        raise failed
    at_fault = [step for step in (*micro_steps, last_step) if not _finite(step)]
    # A forward that failed in itself has no losses; it is the last one.
    step = at_fault[0] if at_fault else last_step
    losses = {name: value.item() for name, value in step.losses.items()}
    path = _replay_path(folder, iteration)
    saved = _write(path, model, step, {"iteration": iteration, "losses": losses})
    raise NonFiniteLossError(_describe(step, iteration, losses, saved, failed)) from failed


def _finite(step: StepRecord) -> bool:
    return all(math.isfinite(loss.item()) for loss in step.losses.values())


def _describe(
    step: StepRecord,
    iteration: int,
    losses: dict[str, float],
    saved: str,
    failed: Exception,
) -> str:
    bad = {k: v for k, v in losses.items() if not math.isfinite(v)}
    images = ", ".join(str(x.get("file_name", "?")) for x in step.batch)
    if not losses:
        what = f"the student's own forward failed: {failed}"
    elif not bad:
        what = "no loss of this process is at fault; another process reports its own"
    else:
        levels = {LOSS_PREFIX + k: v for k, v in step.bad_levels().items() if v}
        what = ", ".join(
            f"{name} is {value}"
            + (f" on level {', '.join(levels[name])}" if name in levels else "")
            for name, value in bad.items()
        )
    rest = ", ".join(f"{k} {v:.4g}" for k, v in losses.items() if k not in bad)
    lines = [
        f"iteration {iteration}: {what}",
        f"finite: {rest or 'none'}",
        f"images: {images}",
        saved,
        _advice(bad),
    ]
    return "\n".join(lines)


def _advice(bad: dict[str, float]) -> str:
    detection, distillation = split_losses(bad)
    if distillation and not detection:
        keys = [f"DISTILL.{name.upper()}.WEIGHT" for name in distillation]
        return f"Try a smaller {' and '.join(keys)}, or a longer DISTILL.SCHEDULE.WARMUP_ITERS."
    return (
        "Try a smaller SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS, or "
        "SOLVER.CLIP_GRADIENTS.ENABLED True."
    )


def _replay_path(folder: str, iteration: int) -> str:
    rank = f"_rank{comm.get_rank()}" if comm.get_world_size() > 1 else ""
    return os.path.join(folder, f"nonfinite_{iteration:07d}{rank}.pth")


def _write(path: str, model: nn.Module, step: StepRecord, record: dict[str, Any]) -> str:
    """Write the replay file and return where, or why not (a full disk must not hide the loss)."""
    record["random"] = step.random
    record["batch"] = [to_plain(sample) for sample in step.batch]
    distilled = isinstance(model, Distiller)
    record["model"] = (model.student if distilled else model).state_dict()
    record["distill_losses"] = model.distill_losses.state_dict() if distilled else {}
    try:
        with atomic_write(path, "wb") as file:
            torch.save(record, file)
    except (OSError, RuntimeError) as error:
        return f"the batch could not be written to {path}: {error}"
    return f"batch and weights: {path} (d2kd.engine.nonfinite.read_replay reads it)"


def read_replay(path: str) -> dict[str, Any]:
    """Read the replay file of a run that stopped at a loss that is not finite.

    Args:
        path: of ``nonfinite_<iteration>.pth``.

    Returns:
        dict: "batch" as the data loader gave it, for ``model(batch)``; "random", the random states
        to set before (``d2kd.utils.rng_state.set_random_state``); "model" and "distill_losses",
        the weights of student and adapters; "iteration"; "losses".
    """
    record = torch.load(path, map_location="cpu", weights_only=True)
    record["batch"] = [from_plain(plain) for plain in record["batch"]]
    return record
