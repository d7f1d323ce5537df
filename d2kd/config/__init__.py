# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Every configuration key of d2kd, its range, and reading yaml files."""

from .defaults import add_d2kd_config, get_value

__all__ = ["add_d2kd_config", "get_value"]
