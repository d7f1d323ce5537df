# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""After a training: a distilled run compared with its baseline, and why it did (not) help."""

from .compare import compare_runs
from .report import Report

__all__ = ["Report", "compare_runs"]
