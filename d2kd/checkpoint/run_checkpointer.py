# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Does a checkpoint fit what is to go on from it? Asked before anything of it is loaded."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..utils.errors import ResumeError
from .fingerprint import describe_changes

__all__ = ["check_fits"]


def check_fits(
    content: dict[str, Any],
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    keys: dict[str, Any],
) -> None:
    """Refuse what would otherwise fail in PyTorch's words, or at the first step.

    Args:
        content: of the checkpoint.
        modules: name in ``content`` -> what is loaded from there.
        optimizer: that is to go on.
        keys: of ``ConfigFingerprint``, now.

    Raises:
        ResumeError: names the keys that have changed.
    """
    problems = [
        problem
        for name, module in modules.items()
        for problem in _tensor_problems(content.get(name, {}), module, name)
    ]
    problems += _optimizer_problems(content, optimizer, keys)
    if not problems:
        return
    changes = describe_changes(content.get("keys", {}), keys)
    known = changes or ["  MODEL.*, SOLVER.* or DISTILL.*; the checkpoint is too old to say which"]
    raise ResumeError(
        "\n".join(
            ["the last checkpoint of OUTPUT_DIR does not fit this config:", *problems]
            + ["What has changed must be set back, or another OUTPUT_DIR be chosen:", *known]
        )
    )


def _tensor_problems(saved: dict[str, Any], module: nn.Module, name: str) -> Iterator[str]:
    """What was saved beyond a module's parameters does no harm; absent buffers are computed."""
    wrong = [
        (key, tuple(saved[key].shape) if key in saved else "absent", tuple(parameter.shape))
        for key, parameter in module.named_parameters()
        if key not in saved or saved[key].shape != parameter.shape
    ]
    if wrong:
        key, old, new = wrong[0]
        yield f"  {len(wrong)} tensors of {name!r}, first {key}: {old} there, {new} here"


def _optimizer_problems(
    content: dict[str, Any], optimizer: torch.optim.Optimizer, keys: dict[str, Any]
) -> Iterator[str]:
    trainer = content.get("trainer", {}).get("_trainer")
    if trainer is None:
        yield "  it holds no optimizer, as those of Detectron2 0.6: start anew, from MODEL.WEIGHTS"
        return
    groups = trainer["optimizer"]["param_groups"]
    was, now = "ADAMW" if "betas" in groups[0] else "SGD", keys["SOLVER.OPTIMIZER"]
    if was != now:
        yield f"  SOLVER.OPTIMIZER was {was!r}, is {now!r}"
    sizes = [[len(group["params"]) for group in x] for x in (groups, optimizer.param_groups)]
    if sizes[0] != sizes[1]:
        old, new = (f"{sum(x)} parameters in {len(x)} groups" for x in sizes)
        yield f"  the optimizer: {old} there, {new} here"
    if keys["SOLVER.AMP.ENABLED"] and "grad_scaler" not in trainer:
        yield "  SOLVER.AMP.ENABLED was False, is True"
