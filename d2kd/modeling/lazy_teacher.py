# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A teacher whose config is one of Detectron2's LazyConfig files: Python code that builds it."""

import builtins
import logging
import os
from functools import lru_cache
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.model_zoo import get_checkpoint_url
from torch import nn

from ..config.lazy_values import lazy_value, without_addresses
from ..config.user_modules import default_config
from ..utils.errors import ConfigError
from ..utils.text import first_line
from .detector_facts import write_facts

__all__ = ["build_lazy_model", "is_lazy", "lazy_weights", "load_lazy", "read_lazy_config"]

logger = logging.getLogger(__name__)

_NAMED_BY = "DISTILL.TEACHER.CONFIG_FILE"


def is_lazy(teacher_cfg: CfgNode) -> bool:
    """Whether a teacher's config stands for a LazyConfig file."""
    return "LAZY" in teacher_cfg.MODEL


def read_lazy_config(path: str) -> CfgNode:
    """The keys that the checks read of a teacher, taken from the detector that the file builds.

    Args:
        path: of the file.

    Returns:
        a config with MODEL.LAZY, from which ``build_lazy_model`` builds the detector.

    Raises:
        ConfigError: the file cannot be read, or its ``model`` cannot be built.
    """
    return _read(path, os.path.getmtime(path)).clone()


def build_lazy_model(teacher_cfg: CfgNode) -> nn.Module:
    """The detector of ``read_lazy_config``, on its MODEL.DEVICE, with random weights."""
    path = teacher_cfg.MODEL.LAZY.FILE
    return _instantiate(load_lazy(path), path).to(teacher_cfg.MODEL.DEVICE)


def lazy_weights(name: str, path: str) -> str:
    """The weights that belong to a file: those of the model zoo, or its ``train.init_checkpoint``.

    Args:
        name: as the config has it, possibly of the model zoo.
        path: of the file.

    Returns:
        their address; "" if there are none.
    """
    try:
        # The init_checkpoint of the zoo's configs is what their training starts from.
        return get_checkpoint_url(name)
    except RuntimeError:
        return lazy_value(load_lazy(path), "train.init_checkpoint") or ""


def load_lazy(path: str, named_by: str = _NAMED_BY) -> Any:
    """Run a LazyConfig file.

    Args:
        path: of the file.
        named_by: the key or option that names it, for messages.

    Returns:
        omegaconf.DictConfig: what it defines; it has a ``model``.

    Raises:
        ConfigError: it fails, or has no ``model``.
    """
    plain_import = builtins.__import__
    try:
        loaded = LazyConfig.load(path)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(
            f"{named_by} {path} fails: {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        # Detectron2 0.6 leaves its own in place after an error.
        builtins.__import__ = plain_import
    if "model" not in loaded:
        raise ConfigError(f"{named_by} {path} has no 'model': set it to a file that defines one")
    return loaded


@lru_cache(maxsize=4)
def _read(path: str, modified: float) -> CfgNode:
    logger.warning("%s %s is Python code and runs as such", _NAMED_BY, path)
    loaded, cfg = load_lazy(path), default_config()
    # A run's random streams do not depend on its teacher.
    with torch.random.fork_rng(devices=[]):
        model = _instantiate(loaded, path)
    _write_data(cfg, loaded)
    write_facts(cfg, model)
    known = getattr(model, "input_format", None) or lazy_value(loaded, "dataloader.test.mapper")
    if not known:
        logger.warning(
            "%s tells no order of channels (input_format of its model, image_format of "
            "dataloader.test.mapper): its images are %s",
            path,
            cfg.INPUT.FORMAT,
        )
    cfg.MODEL.LAZY = CfgNode({"FILE": path, "TEXT": without_addresses(str(loaded.model))})
    return cfg


def _instantiate(loaded: Any, path: str) -> nn.Module:
    try:
        return instantiate(loaded.model)
    except Exception as error:  # of Detectron2, omegaconf or the user's code
        raise ConfigError(
            f"the model of {_NAMED_BY} {path} cannot be built: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def _write_data(cfg: CfgNode, loaded: Any) -> None:
    """The keys of data: names of the sets, and how images are read and resized in a test."""
    for split in ("train", "test"):
        names = lazy_value(loaded, f"dataloader.{split}.dataset.names") or ()
        cfg.DATASETS[split.upper()] = (names,) if isinstance(names, str) else tuple(names)
    mapper = "dataloader.test.mapper"
    if image_format := lazy_value(loaded, f"{mapper}.image_format"):
        cfg.INPUT.FORMAT = image_format
    for step in lazy_value(loaded, f"{mapper}.augmentations") or ():
        if "short_edge_length" in step:
            cfg.INPUT.MIN_SIZE_TEST = step["short_edge_length"]
            cfg.INPUT.MAX_SIZE_TEST = step.get("max_size") or cfg.INPUT.MAX_SIZE_TEST
