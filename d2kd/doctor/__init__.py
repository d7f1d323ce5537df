# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checks of a config, its data and its two detectors before a training is started."""

from .finding import Finding, Status, render
from .run import diagnose

__all__ = ["Finding", "Status", "diagnose", "render"]
