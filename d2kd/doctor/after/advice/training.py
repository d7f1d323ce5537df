# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Rules on the training: the size and direction of the losses, and how near the student came."""

import statistics
from collections.abc import Iterator

from detectron2.config import CfgNode

from ....config.detectors import get_detector
from ...finding import Finding, ok, warning
from ..report import Report
from ..training_log import Series

__all__ = ["advise_on_training", "at_full_factor"]

# As before a training (d2kd.doctor.step_checks): beyond these one side hardly counts.
HIGH, LOW, TARGET = 10.0, 0.01, 0.5
# A median cosine below this: the two gradients work against each other.
_AGAINST = -0.1
# A distillation loss that is above this part of the baseline's has hardly been learnt.
_HARDLY_LOWER = 0.9
# Linear CKA by which the distilled student should be nearer to the teacher.
_NEARER = 0.02


def advise_on_training(report: Report) -> Iterator[Finding]:
    """Loss ratios, gradients, and what the student took over of the teacher."""
    yield from _ratios(report)
    yield from _gradients(report)
    yield from _features(report)
    yield from _learnt(report)


def at_full_factor(report: Report, name: str) -> Series:
    """A loss over the detection losses, over the schedule's factor where it is not 0."""
    log = report.distilled.log
    ratios, factors = log.loss_ratios()[name], dict(zip(*log.series(f"loss_weight/{name}")))
    kept = [(i, x / factors.get(i, 1.0)) for i, x in zip(*ratios) if factors.get(i, 1.0) > 0.01]
    return Series([i for i, _ in kept], [x for _, x in kept])


def _ratios(report: Report) -> Iterator[Finding]:
    for name in report.distilled.log.loss_ratios():
        values = at_full_factor(report, name).values
        if not values:
            continue
        ratio, key = statistics.median(values), f"DISTILL.{name.upper()}.WEIGHT"
        weight = report.distilled.cfg.DISTILL[name.upper()].WEIGHT
        text = f"loss_distill_{name} was {ratio:.3g} x the detection losses (median, factor 1)"
        if ratio == 0:
            yield warning(f"ratio {name}", text, f"it did nothing: is {key} 0?")
        elif not LOW <= ratio <= HIGH:
            advice = f"{key} {weight * TARGET / ratio:.2g} would make it {TARGET} (was {weight:g})"
            yield warning(f"ratio {name}", text, advice)
        else:
            yield ok(f"ratio {name}", text)


def _gradients(report: Report) -> Iterator[Finding]:
    log = report.distilled.log
    cosines = log.names("distill_gradient/", "_cosine")
    if not cosines:
        text = "the gradients of the losses were not logged"
        yield ok("gradients", text, "set DISTILL.LOG_GRADIENTS to see their shares and cosines")
    for key in cosines:
        name = key[len("distill_gradient/") : -len("_cosine")]
        cosine = statistics.median(log.series(key).values or [0.0])
        ratios = log.series(f"distill_gradient/{name}_ratio").values
        share = f", norm {statistics.median(ratios):.3g} x theirs" if ratios else ""
        text = f"{name}: median cosine {cosine:+.2f} to the detection losses' gradient{share}"
        if cosine < _AGAINST:
            advice = f"it pulls against detection: lower DISTILL.{name.upper()}.WEIGHT"
            yield warning("gradients", text, advice)
        else:
            yield ok("gradients", text)


def _features(report: Report) -> Iterator[Finding]:
    """Whether the feature loss did its work: by its own value, and by what needs no adapter."""
    ours, theirs = report.imitation
    if ours is None or theirs is None or "feature" not in ours.losses:
        return
    levels = [x for x in ours.per_level["feature"] if x in ours.similarity]
    parts, nearer = [], False
    if levels:
        means = [statistics.fmean(x.similarity[level] for level in levels) for x in (ours, theirs)]
        nearer = means[0] > means[1] + _NEARER
        parts.append(f"similarity (CKA) {means[0]:.2f}, the baseline's {means[1]:.2f}")
    if "feature" in theirs.losses:
        values = ours.losses["feature"], theirs.losses["feature"]
        nearer = nearer or values[0] < _HARDLY_LOWER * values[1]
        parts.append(f"the feature loss {values[0]:.3g}, the baseline's {values[1]:.3g}")
    if parts:
        yield _rate_features(report, "to the teacher's features: " + "; ".join(parts), nearer)


def _rate_features(report: Report, text: str, nearer: bool) -> Finding:
    if not nearer:
        advice = (
            "the feature loss brought them no nearer: raise DISTILL.FEATURE.WEIGHT, or try another "
            "DISTILL.FEATURE.MASK or DISTANCE"
        )
        return warning("features", text, advice)
    if report.sets and report.sets[0].whole.sign <= 0:
        advice = f"they came nearer without a sure gain: {_other_target(report)}"
        return warning("features", text, advice)
    return ok("features", text)


def _other_target(report: Report) -> str:
    """What to imitate instead."""
    node = report.distilled.cfg.DISTILL
    if node.FEATURE.DISTANCE in ("squared", "absolute"):
        # Photographs of cards, 600 iterations: 12 AP with "squared", 19 with "ssim" (baseline 11).
        return "try DISTILL.FEATURE.DISTANCE 'ssim' with WEIGHT 4.0, which is bounded"
    lacking = [name for name in ("cls", "reg") if name not in node.LOSSES]
    if lacking:
        return f"add {' and '.join(map(repr, lacking))} to DISTILL.LOSSES"
    return "what limits the student is not what the losses compare: try a better teacher"


def _same_regions(cfg: CfgNode, name: str) -> bool:
    """Whether a loss reads both students on the same regions, so that its values compare."""
    gated = name == "reg" and cfg.DISTILL.REG.GATE != "none"
    return not get_detector(cfg).two_stage and not gated


def _learnt(report: Report) -> Iterator[Finding]:
    ours, theirs = report.imitation
    if ours is None or theirs is None:
        return
    for name, value in ours.losses.items():
        if name == "feature" or not _same_regions(report.distilled.cfg, name):
            continue
        before = theirs.losses.get(name, 0.0)
        if before > 0 and value > _HARDLY_LOWER * before:
            text = (
                f"loss_distill_{name} on {ours.images} test images is {value:.3g}, {before:.3g} "
                "for the baseline, which never saw the teacher"
            )
            advice = f"it was hardly learnt: raise DISTILL.{name.upper()}.WEIGHT, or train longer"
            yield warning(f"learnt {name}", text, advice)
