# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A teacher cache that cannot work is refused before anything is built."""

import pytest

from d2kd.config.validation import check_config
from d2kd.utils.errors import ConfigError
from tests.common.helpers import distill_cfg

FILES = ("teacher.yaml", "teacher.pth")


@pytest.mark.parametrize(
    "opts, words",
    [
        (["INPUT.CROP.ENABLED", True], "random crops are never the same twice, so set it to False"),
        (["DISTILL.TEACHER.CACHE", "Memory"], "a folder with a slash in its name, as './cache'"),
        (["DISTILL.TEACHER.CACHE_DTYPE", "bf16"], "CACHE_DTYPE is 'bf16': set it to one of"),
        (["DISTILL.TEACHER.CACHE_GIB", -1.0], "CACHE_GIB is -1.0: set it to a number, 0 or above"),
    ],
)
def test_refused(opts, words):
    with pytest.raises(ConfigError, match=words):
        check_config(distill_cfg(FILES, "DISTILL.TEACHER.CACHE", "memory", *opts))


@pytest.mark.parametrize("cache", ["", "memory", "./cache", "/a/b"])
def test_accepted(cache):
    check_config(distill_cfg(FILES, "DISTILL.TEACHER.CACHE", cache))


def test_crops_are_nobodys_business_without_a_cache():
    check_config(distill_cfg(FILES, "INPUT.CROP.ENABLED", True))
