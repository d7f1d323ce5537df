# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Finds the weights in the checkpoint of another program, which may wrap them in its own way."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from ..utils.errors import WeightsError
from ..utils.text import first_few

__all__ = ["describe_content", "find_state_dict", "strip_prefix"]

# How deep a state_dict may lie in the file: {"state": {"state_dict": ...}}.
_DEPTH = 2


def find_state_dict(content: Any) -> tuple[str, dict[str, Any]]:
    """The one state_dict of a file.

    "model" as Detectron2 writes it comes first, then the file itself, then the only dict of tensors
    that lies deeper.

    Args:
        content: of the file.

    Returns:
        the name under which it lies, "" for the file itself; name -> tensor or array.

    Raises:
        WeightsError: there is none, or there are several; says what the file holds.
    """
    if not isinstance(content, dict):
        raise WeightsError(f"it holds {describe_content(content)}, not a dict of tensors")
    if _is_state_dict(content.get("model")):
        return "model", content["model"]
    if _is_state_dict(content):
        return "", content
    found = dict(_search(content))
    if len(found) == 1:
        return next(iter(found.items()))
    reason = f"{len(found)} state_dicts ({', '.join(found)})" if found else "no dict of tensors"
    end = ": write the one to load into a file of its own, as {'model': state_dict}"
    raise WeightsError(f"it holds {reason}; it has {describe_content(content)}{end}")


def strip_prefix(state: dict[str, Any], names: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """Take off the prefix that another program put before the model's names ("module.").

    Args:
        state: name in the file -> tensor.
        names: of the model.

    Returns:
        the prefix, "" if the names fit best as they are; the state with the model's names.

    Raises:
        WeightsError: two prefixes hold as many of the model's names ("student." and "teacher.").
    """
    known = set(names)
    counts = Counter(prefix for name in state for prefix in _prefixes(name, known))
    best = counts.most_common(2)
    if not best or counts[""] >= best[0][1]:
        return "", state
    if len(best) > 1 and best[1][1] > best[0][1] / 2:
        text = " and ".join(f"{count} under {prefix!r}" for prefix, count in best)
        raise WeightsError(
            f"it holds the detector more than once, {text}: write the one to load into a file of "
            "its own, without the prefix"
        )
    prefix = best[0][0]
    return prefix, {name.removeprefix(prefix): value for name, value in state.items()}


def describe_content(content: Any) -> str:
    """What a file holds: the first names, and the number of tensors under each."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if not content:
        return "nothing"
    if _is_state_dict(content):
        return f"{len(content)} tensors: {first_few(content, 3)}"
    return first_few((_describe(name, value) for name, value in content.items()), 6)


def _describe(name: Any, value: Any) -> str:
    if _is_state_dict(value):
        return f"{str(name)[:60]} ({len(value)} tensors: {first_few(value, 2)})"
    return str(name)[:60]


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(isinstance(x, (Tensor, np.ndarray)) for x in value.values())
    )


def _search(content: dict, path: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, dict]]:
    for name, value in content.items():
        if _is_state_dict(value):
            yield f"{path}{name}", value
        elif isinstance(value, dict) and depth > 1:
            yield from _search(value, f"{path}{name}.", depth - 1)


def _prefixes(name: str, known: set[str]) -> Iterator[str]:
    """What stands before a name of the model in this name."""
    parts = name.split(".")
    for i in range(len(parts)):
        if ".".join(parts[i:]) in known:
            yield "".join(f"{part}." for part in parts[:i])
