# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Rules on the AP of both runs: is there a gain, on what, and would longer training change it?"""

import math
from collections.abc import Iterator

from ...finding import Finding, ok, warning
from ..bootstrap import Difference
from ..report import Report, SetReport
from ..training_log import Series

__all__ = ["advise_on_result", "images_needed"]

# Below this gain of AP no test set of a usual size would show it.
_LEAST_GAIN = 0.05
# An AP that rises by this part of itself, and by this much, between two evaluations still rises.
_RISE, _LEAST_RISE = 0.03, 0.3
# Percentile intervals of fewer images are too narrow.
_FEW_IMAGES = 50
# Of the normal distribution: 80 % of the tries lie 0.84 deviations further than the 1.96 of 95 %.
_POWER = (1.96 + 0.84) / 1.96


def advise_on_result(report: Report) -> Iterator[Finding]:
    """The verdict on each test set, what was lost, and what more iterations would change."""
    for tested in report.sets:
        yield _verdict(report, tested)
        yield from _lost(tested)
        yield from _still_rising(report, tested)


def images_needed(row: Difference, images: int) -> int | None:
    """Test images whose interval would leave out 0 in 4 of 5 tries, if the gain is what it is now.

    An interval shrinks with the root of their number.

    Args:
        row: of a difference whose interval holds 0.
        images: that it was measured on.

    Returns:
        None for a difference that no usual test set would show.
    """
    if not math.isfinite(row.gain) or abs(row.gain) < _LEAST_GAIN:
        return None
    return math.ceil(images * (_POWER * (row.high - row.low) / 2 / row.gain) ** 2)


def _verdict(report: Report, tested: SetReport) -> Finding:
    row = tested.whole
    interval = f"{row.low:+.2f} to {row.high:+.2f}"
    text = (
        f"{tested.name}: AP {row.ours:.2f} against {row.baseline:.2f}, {row.gain:+.2f} (95 % "
        f"interval {interval}, {report.resamples} resamples of {tested.images} images)"
    )
    if tested.images < _FEW_IMAGES:
        text += f"; with {tested.images} images the interval itself is rough"
    if row.sign > 0:
        advice = "another seed moves AP as well: repeat both runs with other seeds"
        return ok("gain", text + ": more than other test images would explain", advice)
    if row.sign < 0:
        return warning("loss", text + ": worse, whatever the test images", "see the rows below")
    needed = images_needed(row, tested.images)
    advice = (
        f"about {needed} test images would show a difference of {row.gain:+.2f} in 4 of 5 tries; "
        "or repeat both runs with several seeds"
        if needed
        else "the runs are alike: read it as no gain, not as too few images"
    )
    return warning("no evidence", text + ": the interval holds 0", advice)


def _lost(tested: SetReport) -> Iterator[Finding]:
    """Classes and sizes on which the distilled student is worse for sure."""
    if tested.whole.sign < 0:
        return
    for row in tested.differences[1:]:
        if row.name in ("AP50", "AP75") or row.sign >= 0:
            continue
        teacher = {x.name: x for x in tested.teacher}.get(row.name)
        advice = "lower DISTILL.*.WEIGHT, or let it decay (DISTILL.SCHEDULE.NAME)"
        if teacher is not None and teacher.known and teacher.gain <= 0:
            advice = f"the teacher has {teacher.ours:.1f} there, no more than the baseline: see it"
        text = (
            f"{tested.name}: {row.name} {row.ours:.1f} against {row.baseline:.1f}, {row.gain:+.1f} "
            f"({row.low:+.1f} to {row.high:+.1f})"
        )
        yield warning("lost", text, advice)


def _still_rising(report: Report, tested: SetReport) -> Iterator[Finding]:
    baseline = report.baseline.log.average_precision(tested.name)
    ours = report.distilled.log.average_precision(tested.name)
    if len(baseline.values) < 2 or len(ours.values) < 2:
        text = f"{tested.name}: each run was evaluated once, so how AP grew is not known"
        yield ok("growth", text, "set TEST.EVAL_PERIOD, for example to a tenth of SOLVER.MAX_ITER")
        return
    if _rises(baseline):
        text = (
            f"{tested.name}: the baseline's AP still rose at the end, from "
            f"{baseline.values[-2]:.2f} (iteration {baseline.iterations[-2]}) to "
            f"{baseline.values[-1]:.2f}"
        )
        advice = "train both longer (SOLVER.MAX_ITER, STEPS) before you judge: early gains shrink"
        yield warning("not converged", text, advice)
    gains = gains_over_time(ours, baseline)
    if len(gains.values) > 2 and gains.values[-1] > 0 and _rises(gains):
        text = (
            f"{tested.name}: the gain still grew at the end, from {gains.values[-2]:+.2f} to "
            f"{gains.values[-1]:+.2f} AP"
        )
        yield ok("gain grows", text, "train both longer: distillation has not given all it can")


def gains_over_time(ours: Series, baseline: Series) -> Series:
    """The difference of two series where both were evaluated."""
    theirs = dict(zip(*baseline))
    both = [(i, x - theirs[i]) for i, x in zip(*ours) if i in theirs]
    return Series([i for i, _ in both], [x for _, x in both])


def _rises(series: Series) -> bool:
    before, last = series.values[-2:]
    return last - before > max(_RISE * abs(last), _LEAST_RISE)
