# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Floor 6: checks of a set-up before anybody spends GPU hours on it."""

from .finding import Finding, Status, render
from .run import diagnose

__all__ = ["Finding", "Status", "diagnose", "render"]
