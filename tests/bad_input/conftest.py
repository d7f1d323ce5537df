"""Bad input: a data root of its own, and a small data set to spoil."""

from tests.common.toy_fixtures import root, voc  # noqa: F401  fixtures
