# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The doctor says what a teacher cache will hold and whether it pays, and writes nothing."""

import pytest

from d2kd.doctor import Status
from tests.common.examine import examine


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_cache_is_described_and_left_empty(setup, tmp_path, kind):
    cache = "memory" if kind == "memory" else str(tmp_path / "cache")
    found = examine(setup[0], "DISTILL.TEACHER.CACHE", cache, "SOLVER.MAX_ITER", "400")
    assert found["cache"].status is Status.OK
    for part in ("4 images x 2 variants x ", "filling takes about 0.", "99% of", ": it pays"):
        assert part in found["cache"].text
    assert not (tmp_path / "cache").exists() and {"finite", "time"} < set(found)


def test_without_a_cache_there_is_no_row(setup):
    assert "cache" not in examine(setup[0])


def test_a_short_schedule_does_not_pay(setup):
    found = examine(setup[0], "DISTILL.TEACHER.CACHE", "memory", "SOLVER.MAX_ITER", "2")
    assert found["cache"].status is Status.WARNING and "CACHE to ''" in found["cache"].advice


def test_one_that_does_not_fit_is_an_error(setup):
    given = ["DISTILL.TEACHER.CACHE", "memory", "DISTILL.TEACHER.CACHE_GIB", "0.00001"]
    found = examine(setup[0], *given)
    assert found["cache"].status is Status.ERROR and "needs 4 images" in found["cache"].text
    assert "time" not in found
