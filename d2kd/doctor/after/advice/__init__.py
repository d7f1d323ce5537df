# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What to try next: rules over what was measured, each with its figure."""

from ...finding import Finding
from ..report import Report
from .result import advise_on_result
from .teacher import advise_on_teacher
from .training import advise_on_training

__all__ = ["advise"]


def advise(report: Report) -> list[Finding]:
    """All that applies, the result first."""
    return [*advise_on_result(report), *advise_on_teacher(report), *advise_on_training(report)]
