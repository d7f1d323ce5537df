# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Rules on the teacher: is it better than the baseline, and where is it wrong?"""

from collections.abc import Iterator

from ...finding import Finding, ok, warning
from ..report import Report, SetReport

__all__ = ["advise_on_teacher"]

# AP by which a teacher should be above the baseline: most gains are a part of this lead.
_LITTLE_LEAD = 2.0
# Share of the objects that the teacher misses by which a student may find fewer than the baseline.
_UNLEARNT = 0.05


def advise_on_teacher(report: Report) -> Iterator[Finding]:
    """The teacher's lead over the baseline, the classes without one, and what it misses."""
    for tested in report.sets:
        if tested.teacher:
            yield _lead(tested)
            yield from _weak_classes(tested)
            yield from _missed(tested)


def _lead(tested: SetReport) -> Finding:
    row, ours = tested.teacher[0], tested.whole
    text = f"{tested.name}: the teacher has AP {row.ours:.1f}, the baseline {row.baseline:.1f}"
    if row.gain <= 0:
        advice = (
            "it has nothing to teach here: check DISTILL.TEACHER.WEIGHTS and its classes "
            "(train_net.py --eval-teacher), or take a better teacher"
        )
        return warning("teacher", text, advice)
    if row.gain < _LITTLE_LEAD:
        advice = f"a lead of {row.gain:.1f} leaves little to gain: take a better teacher"
        return warning("teacher", text, advice)
    share = f"; of this lead of {row.gain:.1f} the distilled student gained {ours.gain:+.1f}"
    return ok("teacher", text + share)


def _weak_classes(tested: SetReport) -> Iterator[Finding]:
    classes = [row for row in tested.teacher if row.name.startswith("AP ") and row.known]
    weak = sorted((x for x in classes if x.gain < 0), key=lambda x: x.gain)
    if not weak or tested.teacher[0].gain <= 0:
        return
    shown = [
        f"{x.name[3:]} ({x.ours:.1f} against {x.baseline:.1f}{'' if x.sign else ', unsure'})"
        for x in weak[:5]
    ]
    text = f"{tested.name}: the teacher is below the baseline on {', '.join(shown)}"
    text += f" and {len(weak) - 5} more" if len(weak) > 5 else ""
    advice = (
        "compare the names and the order of its classes (DISTILL.TEACHER.CLASSES); if they are "
        "right, train the teacher on more of these"
    )
    yield (warning if any(x.sign for x in weak) else ok)("weak classes", text, advice)


def _missed(tested: SetReport) -> Iterator[Finding]:
    whole = tested.found[0]
    if not whole.missed:
        return
    ours, theirs = whole.ours_of_missed / whole.missed, whole.baseline_of_missed / whole.missed
    text = (
        f"{tested.name}: the teacher misses {whole.missed} of {whole.objects} objects; of these "
        f"the distilled student finds {ours:.0%}, the baseline {theirs:.0%}"
    )
    if ours < theirs - _UNLEARNT:
        advice = (
            "the student gives up what its teacher does not see: let the losses decay "
            "(DISTILL.SCHEDULE.NAME 'linear'), or lower DISTILL.CLS.WEIGHT"
        )
        yield warning("missed", text, advice)
    else:
        yield ok("missed", text)
