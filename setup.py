# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""For tools that still call it; pyproject.toml describes the package."""

from setuptools import setup

setup()
