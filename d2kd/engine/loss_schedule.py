# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The factor on the distillation losses as a function of training progress."""

from detectron2.config import CfgNode
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)

from ..config.validation import check_schedule

__all__ = ["build_schedule"]


def _step(node: CfgNode) -> ParamScheduler:
    # fvcore counts milestones in updates; here an update is a thousandth of the training.
    values = [node.GAMMA**i for i in range(len(node.STEPS) + 1)]
    milestones = [round(1000 * x) for x in node.STEPS]
    return MultiStepParamScheduler(values, milestones=milestones, num_updates=1000)


# By DISTILL.SCHEDULE.NAME.
_SHAPES = {
    "constant": lambda node: ConstantParamScheduler(1.0),
    "linear": lambda node: LinearParamScheduler(1.0, 0.0),
    "cosine": lambda node: CosineParamScheduler(1.0, 0.0),
    "step": _step,
}


def build_schedule(cfg: CfgNode) -> ParamScheduler:
    """Build the schedule of the factor on all distillation losses.

    TAR lets it decay, r(i) = 1 - i/I for iteration i of I (arXiv 2006.13108; linear is the best
    supported reading). FRS raises it, r(i) = i/500 for i < 500, and then keeps it at 1 (arXiv
    2111.00674, released code).

    Args:
        cfg: DISTILL.SCHEDULE.* and SOLVER.MAX_ITER.

    Returns:
        ParamScheduler: progress in [0, 1) -> factor in [0, 1].

    Raises:
        ConfigError: DISTILL.SCHEDULE.NAME is unknown, STEPS do not rise, or the warm-up is longer
            than the training.
    """
    check_schedule(cfg)
    node, max_iter = cfg.DISTILL.SCHEDULE, cfg.SOLVER.MAX_ITER
    schedule = _SHAPES[node.NAME](node)
    if node.WARMUP_ITERS == 0:
        return schedule
    return WarmupParamScheduler(
        schedule, warmup_factor=0.0, warmup_length=node.WARMUP_ITERS / max_iter
    )
