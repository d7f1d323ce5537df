# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The check of what the trial steps measured of the losses' gradients."""

import math
import statistics

from detectron2.config import CfgNode

from .finding import Finding, ok, warning
from .trial_steps import TrialResult

__all__ = ["check_gradient_shares"]

# A cosine below this means that a distillation loss undoes a part of what detection learns.
AGAINST = -0.3


def check_gradient_shares(
    cfg: CfgNode, trial: TrialResult, *, started: bool = True
) -> list[Finding]:
    """Compare each distillation loss's gradient with that of the summed detection losses.

    Args:
        cfg: the weights, and the shares for which other weights are suggested.
        started: whether the student had the weights that training starts from.
    """
    return [_compare(cfg, trial, name, started) for name in trial.gradients[0]]


def _compare(cfg: CfgNode, trial: TrialResult, name: str, started: bool) -> Finding:
    ratio, cosine = (_mean([step[name][i] for step in trial.gradients]) for i in (0, 1))
    check, node = f"gradient {name}", cfg.DISTILL[name.upper()]
    key = f"DISTILL.{name.upper()}"
    if not ratio > 0:
        advice = f"is {key}.WEIGHT 0, or is no region positive or accepted?"
        return warning(check, "this loss has no gradient at the student's features", advice)
    text = f"{ratio:.3g} x that of the detection losses at the student's features, in norm; "
    text += f"cosine {cosine:+.2f}"
    weight = node.WEIGHT * node.SHARE / ratio
    advice = f"{key}.WEIGHT {weight:.2g} would make it {node.SHARE:g}, {key}.SHARE"
    if cosine < AGAINST:
        return warning(check, text, f"it pulls against detection: do both know the boxes? {advice}")
    return ok(check, text, advice if started else "")


def _mean(values: list[float]) -> float:
    """Over the steps in which the loss had a gradient; 0 if there is none."""
    known = [x for x in values if math.isfinite(x)]
    return statistics.fmean(known) if known else 0.0
