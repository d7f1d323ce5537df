# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Config files that are not safe to read: bases that name each other, aliases that multiply, and
tags that create python objects, which only files that Detectron2 installs may have.
"""

import os
from importlib.resources import files
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager

from ..utils.errors import ConfigError

__all__ = ["check_yaml_size"]

# The largest config of Detectron2 has about a thousand values.
_MOST_VALUES = 100_000


def check_yaml_size(path: str, trusted: bool = False, above: tuple[str, ...] = ()) -> bool:
    """Check a yaml and its bases before they are merged.

    A file that is not trusted is read here without creating python objects, which is an error if it
    asks for them. So what this has returned for may be read by yaml's unsafe loader.

    Args:
        path: of the yaml.
        trusted: it may create python objects; files that Detectron2 installs always may.
        above: the files that name it as their base.

    Returns:
        Whether it or one of its bases may create python objects.

    Raises:
        ConfigError: a file is its own base, or a value holds itself or too many values.
        Exception: of yaml or the system, if a file cannot be read.
    """
    if path in above:
        raise ConfigError(f"{path} is its own _BASE_, through {', '.join(above)}")
    trusted = trusted or _is_installed(path)
    with PathManager.open(path) as file:
        content = (yaml.unsafe_load if trusted else yaml.safe_load)(file.read())
    if _count(content, {}, set()) > _MOST_VALUES:
        raise ConfigError(f"{path} holds more than {_MOST_VALUES} values")
    bases = content.get("_BASE_", []) if isinstance(content, dict) else []
    bases = [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []
    named = [_resolve(base, path) for base in bases if isinstance(base, str)]
    # One base that may does not let the others.
    return any([trusted, *[check_yaml_size(base, trusted, (*above, path)) for base in named]])


def _is_installed(path: str) -> bool:
    """Whether it is one of the config files that Detectron2 installs."""
    zoo = os.path.realpath(str(files("detectron2.model_zoo").joinpath("configs")))
    return os.path.realpath(path).startswith(zoo + os.sep)


def _resolve(base: str, path: str) -> str:
    """As fvcore finds it."""
    base = os.path.expanduser(base) if base.startswith("~") else base
    if base.startswith(("/", "https://", "http://")):
        return base
    return os.path.normpath(os.path.join(os.path.dirname(path), base))


def _count(value: Any, known: dict[int, int], above: set[int]) -> int:
    """How many values there are when every alias is written out."""
    if not isinstance(value, (dict, list, tuple, set)):
        return 1
    if id(value) in above:
        raise ConfigError("a value of the yaml holds itself: write it without an alias")
    if id(value) not in known:
        above.add(id(value))
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(part, known, above) for part in parts)
        above.discard(id(value))
    return known[id(value)]
