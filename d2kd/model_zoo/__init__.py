# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""d2kd's configs, which an installed d2kd has with it."""

from .model_zoo import CONFIGS, D2kdPathHandler, find_config_file, get_config_file

__all__ = ["CONFIGS", "D2kdPathHandler", "find_config_file", "get_config_file"]
