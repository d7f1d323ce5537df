"""How strongly a student listens to its teacher as training goes on: the factor r(i)."""

from detectron2.config import CfgNode
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)

__all__ = ["build_schedule"]


def _step(node: CfgNode) -> ParamScheduler:
    # Milestones of fvcore are counted in updates, here thousandths of the training.
    values = [node.GAMMA**i for i in range(len(node.STEPS) + 1)]
    milestones = [round(1000 * x) for x in node.STEPS]
    if not milestones or milestones != sorted({m for m in milestones if 0 < m < 1000}):
        raise ValueError(
            f"DISTILL.SCHEDULE.STEPS is {node.STEPS}: set it to rising fractions between 0 and 1"
        )
    return MultiStepParamScheduler(values, milestones=milestones, num_updates=1000)


_SHAPES = {
    "constant": lambda node: ConstantParamScheduler(1.0),
    "linear": lambda node: LinearParamScheduler(1.0, 0.0),
    "cosine": lambda node: CosineParamScheduler(1.0, 0.0),
    "step": _step,
}


def build_schedule(cfg: CfgNode) -> ParamScheduler:
    """The factor on all distillation losses as a function of training progress.

    TAR decays it: r(i) = 1 - i/I (arXiv 2006.13108; linear is the best supported reading). FRS
    warms it up, r(i) = i/500 for i < 500, and keeps it (arXiv 2111.00674, released code).

    Args:
        cfg: DISTILL.SCHEDULE.* and SOLVER.MAX_ITER.

    Returns:
        ParamScheduler: progress in [0, 1) -> factor in [0, 1].

    Raises:
        ValueError: unknown DISTILL.SCHEDULE.NAME, or a warm-up longer than the training.
    """
    node, max_iter = cfg.DISTILL.SCHEDULE, cfg.SOLVER.MAX_ITER
    if node.NAME not in _SHAPES:
        raise ValueError(
            f"DISTILL.SCHEDULE.NAME is {node.NAME!r}: set it to one of {sorted(_SHAPES)}"
        )
    schedule = _SHAPES[node.NAME](node)
    if node.WARMUP_ITERS == 0:
        return schedule
    if not 0 < node.WARMUP_ITERS < max_iter:
        raise ValueError(
            f"DISTILL.SCHEDULE.WARMUP_ITERS is {node.WARMUP_ITERS}: set it below SOLVER.MAX_ITER, "
            f"{max_iter}"
        )
    return WarmupParamScheduler(
        schedule, warmup_factor=0.0, warmup_length=node.WARMUP_ITERS / max_iter
    )
