# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What tests of several folders share."""

from pathlib import Path

__all__ = ["ROOT", "SHAPES_PAIR"]

ROOT = Path(__file__).resolve().parents[2]

# Student and teacher in the names of the shapes' configs.
SHAPES_PAIR = "R_50_eighth_from_R_50_three_eighths_800"
