#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Measure what DISTILL.LOG_GRADIENTS and DISTILL.BALANCE cost, as a share of a distilled step.

    python -m experiments.benchmark.gradients --output docs/benchmark/gradients.json

A step that measures the gradients and one that does not run in turns, so that a busy machine slows
both alike. It uses the shapes' detectors with random weights and one thread of a CPU.
"""

import argparse
import json
from pathlib import Path

from d2kd.benchmark.networks import Pair, build_networks, read_config
from d2kd.benchmark.options import load_batches, parse_args
from d2kd.benchmark.tasks import train_step
from d2kd.losses.gradient_share import gradient_products
from d2kd.structures import DistillStep, LossTerms
from d2kd.utils.malloc import keep_freed_memory
from d2kd.utils.timing import Sample, describe_machine, interleave

_FOLDER, _NAME = "configs/shapes", "R_50_eighth_from_R_50_three_eighths_800.yaml"
# Losses on features alone, on heads alone, and on both.
CONFIGS = {
    "Faster R-CNN, TAR": f"{_FOLDER}/TAR/faster_rcnn_{_NAME}",
    "Faster R-CNN, SSIM": f"{_FOLDER}/SSIM/faster_rcnn_{_NAME}",
    "RetinaNet, TAR": f"{_FOLDER}/TAR/retinanet_{_NAME}",
    "GFL, BCKD": f"{_FOLDER}/BCKD/gfl_{_NAME}",
}
# The default of DISTILL.BALANCE_PERIOD.
PERIOD = 20


def _measure(detection: dict, terms: dict[str, LossTerms], step: DistillStep) -> dict:
    """The terms hook that measures every step, as GradientHook does where one is due."""
    losses = {name: found.total for name, found in terms.items()}
    gradient_products(sum(detection.values()), losses, list(step.student.features.values()))
    return terms


def time_steps(pair: Pair, batches: list[list[dict]], steps: int) -> dict[str, Sample]:
    """The seconds of a step that measures ("on") and of one that does not ("off")."""
    models = {name: pair.distiller(list(pair.losses)) for name in ("off", "on")}
    models["on"].register_terms_hook(_measure)
    tasks = {name: train_step(pair.cfg, model, batches) for name, model in models.items()}
    return interleave(tasks, steps, warmup=2)


def summarise(times: dict[str, Sample]) -> dict[str, float]:
    """A measurement's cost over a step, and that of one in PERIOD steps; medians over rounds."""
    pairs = zip(times["on"].values, times["off"].values)
    cost = Sample(tuple(on / off - 1 for on, off in pairs))
    return {
        "step_s": round(times["off"].median, 4),
        "measurement_over_step": round(cost.median, 4),
        "iqr": round(cost.iqr, 4),
        "cost_at_period": round(cost.median / PERIOD, 4),
    }


def main() -> None:
    """Time every config and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, help="JSON file for the results")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    keep_freed_memory("cpu")
    rows = []
    for name, config in CONFIGS.items():
        given = ["--config-file", config, "--random-weights", "--threads", "1"]
        options = parse_args("", [*given, "MODEL.DEVICE", "cpu"])
        cfg = read_config(options.config_file, options.opts)
        pair = build_networks(cfg, random_weights=True, separate_baseline=False)
        found = summarise(time_steps(pair, load_batches(cfg, options), args.steps))
        rows.append({"name": name, "config": config, **found})
        print(rows[-1], flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    content = {**describe_machine("cpu"), "period": PERIOD, "steps": args.steps, "rows": rows}
    args.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
