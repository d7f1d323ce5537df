# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Evaluation tests: a data root of their own, and a small data set in it."""

from tests.common.toy_fixtures import root, voc  # noqa: F401  fixtures
