# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The range of every number in a config, and what the message says to set it to."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..utils.numbers import is_number
from .defaults import LOG_WRITERS, LOSS_NAMES

__all__ = ["DISTILL_RANGES", "FRACTIONS", "NOT_NEGATIVE", "RANGES", "Rule", "is_device"]


def is_device(value: Any) -> bool:
    try:
        return bool(torch.device(value).type)
    except (RuntimeError, TypeError):
        return False


def _are_rising_fractions(values: Sequence[float]) -> bool:
    """In thousandths, which is how finely the schedule's milestones are counted."""
    marks = [round(1000 * x) for x in values if is_number(x)]
    rising = marks == sorted({mark for mark in marks if 0 < mark < 1000})
    return bool(marks) and rising and len(marks) == len(values)


Rule = tuple[Callable[[Any], bool], str]
POSITIVE: Rule = (lambda x: is_number(x) and x > 0, "a number above 0")
NOT_NEGATIVE: Rule = (lambda x: is_number(x) and x >= 0, "a number, 0 or above")
AT_LEAST_1: Rule = (lambda x: type(x) is int and x > 0, "a whole number, 1 or above")
COUNT: Rule = (lambda x: type(x) is int and x >= 0, "a whole number, 0 or above")
ODD: Rule = (
    lambda x: type(x) is int and x > 0 and x % 2 == 1,
    "an odd whole number, 1 or above: the window has a centre",
)
DEVICE: Rule = (is_device, "'cuda', 'cuda:N' or 'cpu'")
SOME_LOSSES: Rule = (
    lambda x: len(x) > 0 and set(x) <= set(LOSS_NAMES) and len(set(x)) == len(x),
    f"one or more of {list(LOSS_NAMES)}, each once, or set DISTILL.ENABLED False to train without "
    "a teacher",
)
SOME_WRITERS: Rule = (
    lambda x: set(x) <= set(LOG_WRITERS) and len(set(x)) == len(x),
    f"any of {list(LOG_WRITERS)}, each once",
)
LEVELS: Rule = (
    lambda x: all(isinstance(name, str) for name in x) and len(set(x)) == len(x),
    "names of feature levels, each once; [] is all of them",
)
CACHE: Rule = (
    lambda x: x in ("", "memory") or isinstance(x, str) and "/" in x,
    "'', 'memory', or a folder with a slash in its name, as './cache'",
)
FRACTIONS: Rule = (_are_rising_fractions, "rising fractions between 0 and 1, as (0.667, 0.889)")

RANGES: dict[str, Rule] = {
    "LOG.WRITERS": SOME_WRITERS,
    "MODEL.DEVICE": DEVICE,
    "SOLVER.ACCUMULATE_STEPS": AT_LEAST_1,
    "SOLVER.MAX_ITER": POSITIVE,
    "SOLVER.IMS_PER_BATCH": POSITIVE,
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.CHECKPOINT_PERIOD": AT_LEAST_1,
    "SOLVER.WARMUP_ITERS": NOT_NEGATIVE,
    "DATALOADER.NUM_WORKERS": NOT_NEGATIVE,
    "TEST.STOP_AFTER": COUNT,
}
DISTILL_RANGES: dict[str, Rule] = {
    "DISTILL.LOSSES": SOME_LOSSES,
    "DISTILL.CROSS_HEAD": COUNT,
    "DISTILL.FEATURE.LEVELS": LEVELS,
    "DISTILL.TEACHER.CACHE": CACHE,
    "DISTILL.TEACHER.CACHE_GIB": NOT_NEGATIVE,
    "DISTILL.FEATURE.WEIGHT": NOT_NEGATIVE,
    "DISTILL.CLS.WEIGHT": NOT_NEGATIVE,
    "DISTILL.REG.WEIGHT": NOT_NEGATIVE,
    "DISTILL.LOG_GRADIENTS": COUNT,
    "DISTILL.BALANCE_PERIOD": AT_LEAST_1,
    "DISTILL.FEATURE.SHARE": POSITIVE,
    "DISTILL.CLS.SHARE": POSITIVE,
    "DISTILL.REG.SHARE": POSITIVE,
    "DISTILL.CLS.TEMPERATURE": POSITIVE,
    "DISTILL.REG.TEMPERATURE": POSITIVE,
    "DISTILL.MASKS.GAUSSIAN.SIGMA2": POSITIVE,
    "DISTILL.DISTANCES.CHANNEL_KL.TEMPERATURE": POSITIVE,
    "DISTILL.DISTANCES.SSIM.WINDOW": ODD,
    "DISTILL.DISTANCES.SSIM.SIGMA": POSITIVE,
    "DISTILL.DISTANCES.SSIM.ALPHA": NOT_NEGATIVE,
    "DISTILL.DISTANCES.SSIM.BETA": NOT_NEGATIVE,
    "DISTILL.DISTANCES.SSIM.GAMMA": NOT_NEGATIVE,
    "DISTILL.DISTANCES.SSIM.K1": POSITIVE,
    "DISTILL.DISTANCES.SSIM.K2": POSITIVE,
    "DISTILL.DISTANCES.SSIM.RANGE": POSITIVE,
}
