# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The demo's teacher: trained if it is absent, evaluated, and its step timed."""

import contextlib
import time
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from d2kd import DistillTrainer
from d2kd.config.load import load_config
from d2kd.engine.trial_step import TrialStep
from d2kd.modeling.build import build_teacher, read_teacher_config
from d2kd.utils.timing import wait
from experiments.demo.imagenet_weights import ensure_imagenet_weights
from experiments.training_runs import (
    ROOT,
    Run,
    cached_result,
    count_params,
    execute,
    file_sha256,
)

__all__ = ["ensure_teacher", "evaluate_teacher", "teacher_config"]

STEPS_TIMED = 8


def teacher_config(cfg: CfgNode, test_set: str) -> CfgNode:
    """The teacher's config as the distilled student reads it, evaluated on the demo's test set."""
    teacher_cfg = read_teacher_config(cfg)
    teacher_cfg.DATASETS.TEST = (test_set,)
    return teacher_cfg


def ensure_teacher(cfg: CfgNode) -> None:
    """Train the teacher of a distilled student by its own yaml, if its checkpoint is absent.

    Raises:
        ConfigError, WeightsError: the weights that it starts from are absent and cannot be had.
    """
    weights, config = cfg.DISTILL.TEACHER.WEIGHTS, f"configs/{cfg.DISTILL.TEACHER.CONFIG_FILE}"
    if "://" in weights or (ROOT / weights).is_file() or not (ROOT / config).is_file():
        return
    teacher_cfg = load_config(str(ROOT / config))
    if Path(weights) != Path(teacher_cfg.OUTPUT_DIR, "model_final.pth"):
        return  # a path of the user's own, which is refused where the teacher is built
    ensure_imagenet_weights(teacher_cfg)
    length = teacher_cfg.SOLVER.MAX_ITER
    print(f"{'teacher':<12} {length} iterations of {config}; then {weights} is kept", flush=True)
    options = ("MODEL.DEVICE", cfg.MODEL.DEVICE)
    execute(Run("teacher", config, Path(weights).parent, options))


def evaluate_teacher(cfg: CfgNode, output: Path) -> dict[str, float]:
    """Evaluate the teacher, and time its training step as the students' are timed.

    Args:
        cfg: from ``teacher_config``.
        output: folder for the results and the evaluation's log.

    Returns:
        dict: AP, AP50, AP75, params, seconds_per_iter.
    """

    def compute() -> dict[str, float]:
        print(f"{'teacher':<12} evaluating on {cfg.DATASETS.TEST[0]}", flush=True)
        with open(output / "console.txt", "w") as file, contextlib.redirect_stdout(file):
            teacher = build_teacher(cfg, cfg.INPUT.FORMAT)
            box = DistillTrainer.test(cfg, teacher.model)["bbox"]
        return {
            **{name: box[name] for name in ("AP", "AP50", "AP75")},
            "params": count_params(cfg),
            "seconds_per_iter": time_training_step(cfg),
        }

    cfg.OUTPUT_DIR = str(output)
    settings = {"config": cfg.dump(), "weights": file_sha256(cfg.MODEL.WEIGHTS)}
    return cached_result(output, settings, compute)


def time_training_step(cfg: CfgNode) -> float:
    """Median seconds of a training step of the config's detector, batch loading included."""
    step = TrialStep(cfg, build_model(cfg).train())
    batches = iter(DistillTrainer.build_train_loader(cfg))
    seconds: list[float] = []
    for _ in range(STEPS_TIMED):
        start = time.perf_counter()
        step(next(batches))
        wait()
        seconds.append(time.perf_counter() - start)
    return round(sorted(seconds[2:])[len(seconds[2:]) // 2], 4)
