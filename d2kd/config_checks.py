"""Are the values of a config in their ranges? Asked before anything is read or built."""

from typing import Any, Callable, Dict, List, Sequence, Tuple

from detectron2.config import CfgNode

from .config import LAYOUTS, PRECISIONS, PROPOSALS, get_value
from .data.coco_checks import is_number
from .data.mapper import BAD_IMAGES
from .data.records import did_you_mean
from .layers import ADAPTERS
from .losses import DISTANCE_REGISTRY, MASK_REGISTRY

__all__ = ["ConfigError", "check_config"]


class ConfigError(ValueError):
    """A config file or an option on the command line cannot be used."""


Rule = Tuple[Callable[[Any], bool], str]
POSITIVE: Rule = (lambda x: is_number(x) and x > 0, "a number above 0")
NOT_NEGATIVE: Rule = (lambda x: is_number(x) and x >= 0, "a number, 0 or above")
AT_LEAST_1: Rule = (lambda x: type(x) is int and x > 0, "a whole number, 1 or above")

_RANGES: Dict[str, Rule] = {
    "SOLVER.ACCUMULATE_STEPS": AT_LEAST_1,
    "SOLVER.MAX_ITER": POSITIVE,
    "SOLVER.IMS_PER_BATCH": POSITIVE,
    "SOLVER.BASE_LR": POSITIVE,
    "DATALOADER.NUM_WORKERS": NOT_NEGATIVE,
}
_DISTILL_RANGES: Dict[str, Rule] = {
    "DISTILL.FEATURE.WEIGHT": NOT_NEGATIVE,
    "DISTILL.CLS.WEIGHT": NOT_NEGATIVE,
    "DISTILL.REG.WEIGHT": NOT_NEGATIVE,
    "DISTILL.CLS.TEMPERATURE": POSITIVE,
    "DISTILL.REG.TEMPERATURE": POSITIVE,
    "DISTILL.SCHEDULE.WARMUP_ITERS": NOT_NEGATIVE,
    "DISTILL.SCHEDULE.GAMMA": NOT_NEGATIVE,
    "DISTILL.MASKS.GAUSSIAN.SIGMA2": POSITIVE,
    "DISTILL.DISTANCES.CHANNEL_KL.TEMPERATURE": POSITIVE,
    "DISTILL.DISTANCES.SSIM.WINDOW": POSITIVE,
    "DISTILL.DISTANCES.SSIM.SIGMA": POSITIVE,
    "DISTILL.DISTANCES.SSIM.K1": POSITIVE,
    "DISTILL.DISTANCES.SSIM.K2": POSITIVE,
    "DISTILL.DISTANCES.SSIM.RANGE": POSITIVE,
}


def _distill_choices() -> Dict[str, Sequence[str]]:
    """Key -> allowed values; registries are read now, when the user's own are in them."""
    masks = [name for name, _ in MASK_REGISTRY]
    return {
        "DISTILL.FEATURE.MASK": masks,
        "DISTILL.FEATURE.DISTANCE": [name for name, _ in DISTANCE_REGISTRY],
        "DISTILL.FEATURE.CHANNELS": ("mean", "sum"),
        "DISTILL.FEATURE.ADAPTER": ADAPTERS,
        "DISTILL.CLS.WHERE": ["positives", *masks],
        "DISTILL.PROPOSALS": PROPOSALS,
        "DISTILL.TEACHER.LAYOUT": LAYOUTS,
        "DISTILL.TEACHER.PRECISION": PRECISIONS,
        "DISTILL.MASKS.GAUSSIAN.LEVELS": ("all", "own"),
    }


def check_config(cfg: CfgNode) -> None:
    """
    Check every number's range and every name's being known; all that is wrong is listed at once.

    Raises:
        ConfigError: names each key, its value, and what it may be.
    """
    ranges, choices = dict(_RANGES), {"DATALOADER.BAD_IMAGES": BAD_IMAGES}
    if cfg.DISTILL.ENABLED:
        ranges.update(_DISTILL_RANGES)
        choices.update(_distill_choices())
    problems: List[str] = []
    for key, (holds, text) in ranges.items():
        if not holds(get_value(cfg, key)):
            problems.append(f"  {key} is {get_value(cfg, key)!r}: set it to {text}")
    for key, known in choices.items():
        value = get_value(cfg, key)
        if value not in known:
            hint = did_you_mean(value, known)
            problems.append(f"  {key} is {value!r}: set it to one of {sorted(known)}.{hint}")
    if problems:
        raise ConfigError("\n".join(["the config has values out of range:", *problems]))
