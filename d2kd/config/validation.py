# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checks that the values of a config are in range, before anything is read or built."""

from collections.abc import Iterator, Sequence

import torch
from detectron2.config import CfgNode

from ..losses import DISTANCE_REGISTRY, MASK_REGISTRY
from ..losses.adapters import ADAPTERS
from ..losses.classification import DISTANCES as CLS_DISTANCES
from ..losses.classification import NORMALIZERS as CLS_NORMALIZERS
from ..losses.feature import CHANNELS
from ..losses.locations import NORMALIZERS as REG_NORMALIZERS
from ..losses.masks import BOX_LEVELS
from ..losses.regression import DISTANCES as REG_DISTANCES
from ..losses.regression import GATES
from ..losses.regression import WHERE as REG_WHERE
from ..losses.ssim.distance import SCALINGS
from ..utils.errors import ConfigError
from ..utils.numbers import is_number
from ..utils.text import did_you_mean
from .defaults import (
    BAD_IMAGES,
    BALANCES,
    CACHE_DTYPES,
    COCO_EVALUATORS,
    LAYOUTS,
    OPTIMIZERS,
    PRECISIONS,
    PROPOSALS,
    SCHEDULES,
    get_value,
)
from .detectors import get_detector
from .detectron2_values import wrong_values
from .ranges import DISTILL_RANGES, FRACTIONS, NOT_NEGATIVE, RANGES, Rule, is_device
from .unused_keys import ineffective_keys

__all__ = ["check_config", "check_schedule", "describe_warmup"]


Problems = Iterator[str]


def _choices(cfg: CfgNode) -> dict[str, Sequence[str]]:
    """Key -> allowed values, of the keys that also count without a teacher."""
    schedulers = ["WarmupMultiStepLR", "WarmupCosineLR"]
    # The key came with it; release 0.6 has neither.
    if "RESCALE_INTERVAL" in cfg.SOLVER:
        schedulers.append("WarmupStepWithFixedGammaLR")
    return {
        "DATALOADER.BAD_IMAGES": BAD_IMAGES,
        "TEST.COCO_EVALUATOR": COCO_EVALUATORS,
        "SOLVER.OPTIMIZER": OPTIMIZERS,
        "SOLVER.LR_SCHEDULER_NAME": schedulers,
        "SOLVER.WARMUP_METHOD": ("constant", "linear"),
    }


def _distill_choices() -> dict[str, Sequence[str]]:
    """Key -> allowed values; reads the registries late, when they hold the user's functions."""
    masks = [name for name, _ in MASK_REGISTRY]
    return {
        "DISTILL.FEATURE.MASK": masks,
        "DISTILL.FEATURE.DISTANCE": [name for name, _ in DISTANCE_REGISTRY],
        "DISTILL.FEATURE.CHANNELS": CHANNELS,
        "DISTILL.FEATURE.ADAPTER": ADAPTERS,
        "DISTILL.CLS.WHERE": ["positives", *masks],
        "DISTILL.CLS.DISTANCE": CLS_DISTANCES,
        "DISTILL.CLS.NORMALIZER": CLS_NORMALIZERS,
        "DISTILL.REG.WHERE": REG_WHERE,
        "DISTILL.REG.DISTANCE": REG_DISTANCES,
        "DISTILL.REG.NORMALIZER": REG_NORMALIZERS,
        "DISTILL.REG.GATE": GATES,
        "DISTILL.DISTANCES.SSIM.SCALING": list(SCALINGS),
        "DISTILL.PROPOSALS": PROPOSALS,
        "DISTILL.BALANCE": BALANCES,
        "DISTILL.TEACHER.CACHE_DTYPE": CACHE_DTYPES,
        "DISTILL.TEACHER.LAYOUT": LAYOUTS,
        "DISTILL.TEACHER.PRECISION": PRECISIONS,
        "DISTILL.MASKS.GAUSSIAN.LEVELS": BOX_LEVELS,
    }


def check_config(cfg: CfgNode) -> None:
    """Check that every number is in its range and every name is known; lists all errors at once.

    Raises:
        ConfigError: names each key, its value, and what it may be; or names a detector that
            cannot be distilled.
    """
    ranges, choices = dict(RANGES), _choices(cfg)
    if cfg.DISTILL.ENABLED:
        ranges.update(DISTILL_RANGES)
        choices.update(_distill_choices())
    problems = [
        *_out_of_range(cfg, ranges),
        *_unknown(cfg, choices),
        *_unknown_groups(cfg),
        *_precision_problems(cfg),
        *_best_problems(cfg),
        *ineffective_keys(cfg),
        *wrong_values(cfg),
    ]
    if cfg.DISTILL.ENABLED:
        problems += [
            *_schedule_problems(cfg),
            *_exponent_problems(cfg),
            *_cache_problems(cfg),
            *_balance_problems(cfg),
        ]
    _refuse(problems)
    if cfg.DISTILL.ENABLED:
        get_detector(cfg)


def check_schedule(cfg: CfgNode) -> None:
    """The part of ``check_config`` about DISTILL.SCHEDULE."""
    _refuse(list(_schedule_problems(cfg)))


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("\n".join(["the config has values out of range:", *problems]))


def _out_of_range(cfg: CfgNode, ranges: dict[str, Rule]) -> Problems:
    for key, (holds, text) in ranges.items():
        if not holds(get_value(cfg, key)):
            yield f"  {key} is {get_value(cfg, key)!r}: set it to {text}"


def _unknown(cfg: CfgNode, choices: dict[str, Sequence[str]]) -> Problems:
    for key, known in choices.items():
        value = get_value(cfg, key)
        if value not in known:
            hint = did_you_mean(value, known)
            yield f"  {key} is {value!r}: set it to one of {sorted(known)}.{hint}"


def _unknown_groups(cfg: CfgNode) -> Problems:
    """Groups are open to the user's own functions, so a misspelt name would have no effect."""
    for key, registry in (("MASKS", MASK_REGISTRY), ("DISTANCES", DISTANCE_REGISTRY)):
        known = [name.upper() for name, _ in registry]
        for group in cfg.DISTILL[key]:
            if group not in known:
                hint = did_you_mean(group.upper(), known)
                yield f"  DISTILL.{key}.{group}: nothing of that name is registered.{hint}"


def describe_warmup(cfg: CfgNode) -> str:
    """A warning about SOLVER.WARMUP_ITERS, or "". No error: short trials may want it."""
    warmup, last = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    if warmup < last:
        return ""
    return (
        f"SOLVER.WARMUP_ITERS is {warmup} and SOLVER.MAX_ITER {last}: the learning rate never "
        f"reaches SOLVER.BASE_LR, {cfg.SOLVER.BASE_LR}"
    )


def _precision_problems(cfg: CfgNode) -> Problems:
    device = cfg.MODEL.DEVICE
    if cfg.SOLVER.AMP.ENABLED and is_device(device) and torch.device(device).type == "cpu":
        yield f"  SOLVER.AMP.ENABLED is True: set it to False where MODEL.DEVICE is {device}"


def _best_problems(cfg: CfgNode) -> Problems:
    metric, period = cfg.TEST.BEST_METRIC, cfg.TEST.EVAL_PERIOD
    if cfg.TEST.STOP_AFTER and not metric:
        yield (
            f"  TEST.STOP_AFTER is {cfg.TEST.STOP_AFTER}: set TEST.BEST_METRIC to the metric that "
            "has to improve, as 'bbox/AP', or TEST.STOP_AFTER to 0"
        )
    if metric and period <= 0:
        yield (
            f"  TEST.BEST_METRIC is {metric!r} and TEST.EVAL_PERIOD {period}: set TEST.EVAL_PERIOD "
            "to the iterations between two evaluations, or TEST.BEST_METRIC to ''"
        )
    if metric and not cfg.DATASETS.TEST:
        yield (
            f"  TEST.BEST_METRIC is {metric!r} and DATASETS.TEST is empty: set DATASETS.TEST to "
            "the sets to evaluate on, or TEST.BEST_METRIC to ''"
        )


def _schedule_problems(cfg: CfgNode) -> Problems:
    ranges = {
        "DISTILL.SCHEDULE.WARMUP_ITERS": NOT_NEGATIVE,
        "DISTILL.SCHEDULE.GAMMA": NOT_NEGATIVE,
    }
    if cfg.DISTILL.SCHEDULE.NAME == "step":
        ranges["DISTILL.SCHEDULE.STEPS"] = FRACTIONS
    yield from _unknown(cfg, {"DISTILL.SCHEDULE.NAME": SCHEDULES})
    yield from _out_of_range(cfg, ranges)
    warmup, last = cfg.DISTILL.SCHEDULE.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    if is_number(warmup) and warmup > 0 and warmup >= last:
        key = "DISTILL.SCHEDULE.WARMUP_ITERS"
        yield f"  {key} is {warmup}: set it below SOLVER.MAX_ITER, {last}"


def _exponent_problems(cfg: CfgNode) -> Problems:
    keys = [f"DISTILL.DISTANCES.SSIM.{name}" for name in ("ALPHA", "BETA", "GAMMA")]
    if not any(get_value(cfg, key) for key in keys):
        yield f"  {', '.join(keys)} are all 0: set one of them to a number above 0"


def _cache_problems(cfg: CfgNode) -> Problems:
    if cfg.DISTILL.TEACHER.CACHE and cfg.INPUT.CROP.ENABLED:
        yield (
            "  INPUT.CROP.ENABLED is True: random crops are never the same twice, so set it to "
            "False, or DISTILL.TEACHER.CACHE to ''"
        )


def _balance_problems(cfg: CfgNode) -> Problems:
    """A loss of weight 0 has no gradient to be scaled."""
    if cfg.DISTILL.BALANCE != "gradient":
        return
    for name in cfg.DISTILL.LOSSES:
        key = f"DISTILL.{name.upper()}.WEIGHT"
        if get_value(cfg, key) == 0:
            yield (
                f"  {key} is 0: set it to 1.0, DISTILL.BALANCE 'gradient' scales the loss, or take "
                f"{name!r} out of DISTILL.LOSSES"
            )
