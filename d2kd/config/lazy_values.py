# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Values of a LazyConfig."""

import re
from typing import Any

__all__ = ["lazy_value", "without_addresses"]


def lazy_value(lazy: Any, dotted: str) -> Any:
    """A value by its dotted key; None where it is not there."""
    for name in dotted.split("."):
        lazy = lazy.get(name) if hasattr(lazy, "get") else None
    return lazy


def without_addresses(text: str) -> str:
    """Functions and objects are printed with an address, which differs in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
