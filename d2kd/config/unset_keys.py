# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Keys left blank: yaml reads ``KEY:`` as None, and Detectron2 accepts None for any key."""

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..utils.errors import ConfigError
from .defaults import add_d2kd_config, get_value

__all__ = ["refuse_unset_keys"]

_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: 'a text, "" for none',
    list: "a list, [] for none",
    tuple: "a list, () for none",
}


def refuse_unset_keys(cfg: CfgNode, where: str = "the config") -> None:
    """No key is None, nor anything in its lists, unless that is its default.

    Args:
        cfg: as merged.
        where: the file it was read from, for the message.

    Raises:
        ConfigError: names every such key, what it may be, and its default.
    """
    defaults = get_cfg()
    add_d2kd_config(defaults)
    blank = list(_blank_keys(cfg, defaults))
    if blank:
        raise ConfigError("\n".join([f"{where} leaves keys blank:", *blank]))


def _blank_keys(node: CfgNode, defaults: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        key = prefix + name
        default = get_value(defaults, key)
        if isinstance(value, dict):
            yield from _blank_keys(value, defaults, f"{key}.")
        elif value is None:
            if default is not None:
                yield f"  {key} is None: set it to {_kind_of(default)}"
            elif not _is_declared(defaults, key):
                yield f"  {key} is None: set it to a value, or leave the key out"
        elif _holds_none(value):
            yield f"  {key} is {value!r}: leave no entry of the list blank{_default(default)}"


def _is_declared(defaults: CfgNode, key: str) -> bool:
    """Some of Detectron2's keys are None by default, as SOLVER.WEIGHT_DECAY_BIAS."""
    parent, _, name = key.rpartition(".")
    node = get_value(defaults, parent) if parent else defaults
    return node is not None and name in node


def _kind_of(default: Any) -> str:
    return _KINDS.get(type(default), f"a group of keys ({type(default).__name__})") + _default(
        default
    )


def _default(default: Any) -> str:
    return f" (the default is {default!r})"


def _holds_none(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_none, value.values()))
    return isinstance(value, (list, tuple)) and any(x is None or _holds_none(x) for x in value)
