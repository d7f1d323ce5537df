# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Bad input: a data root of its own, and a small data set to spoil."""

from tests.common.toy_fixtures import root, voc  # noqa: F401  fixtures
