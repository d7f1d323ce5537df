# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What counts as a number in a config or an annotation file."""

import math
from typing import Any

__all__ = ["is_integer", "is_number"]


def is_number(value: Any) -> bool:
    """Whether this is a finite number; true and false are none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return number and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def is_integer(value: Any) -> bool:
    """Is it an integer, and no bool?"""
    return isinstance(value, int) and not isinstance(value, bool)
