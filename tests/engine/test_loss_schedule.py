# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The schedules against their closed forms."""

import math

import pytest

from d2kd.config.defaults import SCHEDULES
from d2kd.engine import build_schedule
from d2kd.utils.errors import ConfigError
from tests.common.helpers import plain_cfg

ITERATIONS = 1000


def _factors(name, warmup=0, iterations=ITERATIONS, **keys):
    cfg = plain_cfg("SOLVER.MAX_ITER", iterations, "DISTILL.SCHEDULE.NAME", name)
    cfg.DISTILL.SCHEDULE.WARMUP_ITERS = warmup
    for key, value in keys.items():
        cfg.DISTILL.SCHEDULE[key] = value
    schedule = build_schedule(cfg)
    return [schedule(i / iterations) for i in range(iterations)]


FORMS = {
    "constant": lambda x: 1.0,
    "linear": lambda x: 1 - x,
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "step": lambda x: 0.5 ** ((x >= 0.6) + (x >= 0.9)),
}


@pytest.mark.parametrize("warmup", [0, 100])
@pytest.mark.parametrize("name", FORMS)
def test_closed_form(name, warmup):
    factors = _factors(name, warmup, STEPS=(0.6, 0.9), GAMMA=0.5)
    for i, factor in enumerate(factors):
        expected = FORMS[name](i / ITERATIONS)
        if i < warmup:
            # Straight from 0 to the value that the schedule has when the warm-up ends.
            expected = FORMS[name](warmup / ITERATIONS) * i / warmup
        assert factor == pytest.approx(expected, abs=1e-9), i


def test_frs_warms_up_over_500_iterations_whatever_the_length():
    factors = _factors("constant", 500, iterations=90000)
    assert factors[:501] == pytest.approx([i / 500 for i in range(501)])
    assert set(factors[500:]) == {1.0}


def test_linear_decay_is_tar():
    factors = _factors("linear", iterations=7)
    assert factors == pytest.approx([1 - i / 7 for i in range(7)])
    assert factors[0] == 1 and factors[-1] > 0


@pytest.mark.parametrize(
    "name, warmup, message",
    [
        ("exponential", 0, "DISTILL.SCHEDULE.NAME is 'exponential': set it to one of .'constant'"),
        (
            "linear",
            1000,
            "DISTILL.SCHEDULE.WARMUP_ITERS is 1000: set it below SOLVER.MAX_ITER, 1000",
        ),
        ("linear", -1, "DISTILL.SCHEDULE.WARMUP_ITERS is -1"),
    ],
)
def test_errors_name_the_key(name, warmup, message):
    with pytest.raises(ConfigError, match=message):
        _factors(name, warmup)


def test_every_name_has_its_form():
    assert set(SCHEDULES) == set(FORMS)


@pytest.mark.parametrize("steps", [(0.9, 0.6), (0.5, 1.5), (-0.1,), ()])
def test_steps_are_rising_fractions(steps):
    with pytest.raises(ConfigError, match="DISTILL.SCHEDULE.STEPS"):
        _factors("step", STEPS=steps)
