# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a LazyConfig says of a training's run, under the keys that hooks and checkpoints read."""

import inspect
from pydoc import locate
from typing import Any

from detectron2.config import CfgNode
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..config.lazy_values import lazy_value, without_addresses
from ..config.user_modules import default_config
from ..utils.errors import ConfigError

__all__ = ["has_key", "lazy_keys"]

_NEEDED = [
    *["model", "dataloader.train", "optimizer", "lr_multiplier"],
    *["train.output_dir", "train.init_checkpoint", "train.max_iter", "train.amp.enabled"],
    *["train.device", "train.checkpointer.period", "train.eval_period", "train.log_period"],
]
# Key -> where a LazyConfig has it; the first ones are in _NEEDED.
_KEYS = {
    "OUTPUT_DIR": "train.output_dir",
    "MODEL.DEVICE": "train.device",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "TEST.EVAL_PERIOD": "train.eval_period",
    "SEED": "train.seed",
    "SOLVER.ACCUMULATE_STEPS": "train.accumulate_steps",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.total_batch_size",
    "DATALOADER.NUM_WORKERS": "dataloader.train.num_workers",
    "DATALOADER.BAD_IMAGES": "dataloader.bad_images",
    "INPUT.FORMAT": "dataloader.train.mapper.image_format",
}


def lazy_keys(lazy: Any) -> CfgNode:
    """The keys of a run: folders, periods, names of the data sets.

    ``MODEL.LAZY``, ``SOLVER.LAZY`` and ``DISTILL.LAZY`` hold the values of ``model``, ``optimizer``
    and ``distill``, which a resume compares.

    Args:
        lazy: omegaconf.DictConfig of a training.

    Raises:
        ConfigError: it lacks a part; lists all that it lacks.
    """
    lacking = [name for name in _NEEDED if lazy_value(lazy, name) is None]
    if "distill" in lazy:
        lacking += [f"distill.{x}" for x in ("teacher", "losses") if not lazy.distill.get(x)]
    if lacking:
        raise ConfigError(
            f"the LazyConfig has no {', '.join(lacking)}: define it; "
            "detectron2.model_zoo.get_config('common/train.py').train has defaults of 'train'"
        )
    cfg = default_config()
    for key, dotted in _KEYS.items():
        value = lazy_value(lazy, dotted)
        if value is not None:
            _set(cfg, key, value)
    for split in ("train", "test"):
        cfg.DATASETS[split.upper()] = _set_names(
            lazy_value(lazy, f"dataloader.{split}.dataset.names")
        )
    # Hooks ask whether there is anything to evaluate.
    if "evaluator" not in lazy.dataloader:
        cfg.DATASETS.TEST = ()
    elif not cfg.DATASETS.TEST:
        cfg.DATASETS.TEST = ("dataloader.test",)
    cfg.SOLVER.OPTIMIZER = _kind_of(lazy.optimizer)
    cfg.DISTILL.ENABLED = "distill" in lazy
    cfg.MODEL.LAZY = CfgNode(_plain(lazy.model))
    cfg.SOLVER.LAZY = CfgNode(_plain(lazy.optimizer))
    if cfg.DISTILL.ENABLED:
        cfg.DISTILL.LAZY = CfgNode(_plain(lazy.distill))
    return cfg


def has_key(lazy: Any, dotted: str) -> bool:
    """Whether a LazyConfig has a dotted key, whatever its value."""
    absent = object()
    return OmegaConf.select(lazy, dotted, default=absent) is not absent


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    *path, name = key.split(".")
    for part in path:
        cfg = cfg[part]
    cfg[name] = value


def _set_names(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _kind_of(optimizer: Any) -> str:
    """The value of SOLVER.OPTIMIZER that tells the optimizer's state from that of another kind."""
    target = optimizer["_target_"]
    found: Any = locate(target) if isinstance(target, str) else target
    return "ADAMW" if "betas" in inspect.signature(found).parameters else "SGD"


def _plain(value: Any) -> Any:
    """The values of a node, without what differs from process to process."""
    if isinstance(value, DictConfig):
        return {str(name): _plain(value[name]) for name in value}
    if isinstance(value, ListConfig):
        return [_plain(x) for x in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return without_addresses(repr(value))
