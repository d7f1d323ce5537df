# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What tests of several folders share."""

from pathlib import Path

__all__ = ["ROOT"]

ROOT = Path(__file__).resolve().parents[2]
