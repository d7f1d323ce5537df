# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The user's own modules (``--import``): they register parts, and may add keys to a config."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from detectron2.config import CfgNode, get_cfg

from ..utils.errors import ConfigError
from .defaults import add_d2kd_config

__all__ = ["default_config", "import_modules", "user_configs"]

# The function of a module that adds its keys, as the add_*_config of Detectron2's projects.
ADD_CONFIG = "add_config"

_IMPORTED: list[str] = []


def import_modules(names: Sequence[str]) -> None:
    """Import modules by name, once, from PYTHONPATH or the current folder.

    What they register (backbones, heads, masks, detectors, data sets) is known from then on. If a
    module has a function ``add_config(cfg)``, ``default_config`` calls it.

    Args:
        names: as after ``--import``.

    Raises:
        ConfigError: a module is not there, or imports another one that is not.
    """
    for name in names:
        if name not in _IMPORTED:
            _import(name)
            _IMPORTED.append(name)


def default_config() -> CfgNode:
    """Detectron2's keys, those of d2kd, and those of the imported modules, with their defaults."""
    cfg = get_cfg()
    add_d2kd_config(cfg)
    for add_config in user_configs().values():
        add_config(cfg)
    return cfg


def user_configs() -> dict[str, Callable[[CfgNode], None]]:
    """Name of an imported module -> its ``add_config``; those without one are left out."""
    found = {name: getattr(sys.modules[name], ADD_CONFIG, None) for name in _IMPORTED}
    return {name: function for name, function in found.items() if callable(function)}


def _import(name: str) -> None:
    if name.endswith(".py") or os.sep in name:
        stem = os.path.splitext(os.path.basename(name))[0]
        raise ConfigError(
            f"--import {name}: write the name of the module, {stem}, and run the command in its "
            "folder or add the folder to PYTHONPATH"
        )
    here = os.getcwd()
    # Python searches the script's folder, which for tools/ is not the current one.
    if here not in sys.path:
        sys.path.append(here)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"--import {name}: there is no module {error.name!r} in {here} or on PYTHONPATH"
            ) from error
        raise ConfigError(
            f"--import {name}: it imports {error.name!r}, which is not installed"
        ) from error
