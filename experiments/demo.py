#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Train a student with and without a teacher on the synthetic shapes, and compare the three.

    python tools/demo.py

Both students start from the same weights and see the same images in the same order. The demo
prints a table and writes ``results.json`` and ``detections.png``. Results of an earlier call with
the same settings are kept.
"""

import contextlib
import json
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import cv2
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from tabulate import tabulate

from d2kd import DistillTrainer, add_d2kd_config
from d2kd.config.load import load_config
from d2kd.engine.trial_step import TrialStep
from d2kd.modeling.build import build_teacher, read_teacher_config
from d2kd.utils.command_line import exit_on_user_error
from d2kd.utils.common_arguments import add_common_arguments
from d2kd.utils.device import device_or_cpu
from d2kd.utils.errors import ConfigError
from d2kd.utils.timing import wait
from experiments.plots import Detections, detections_grid
from experiments.training_runs import (
    ROOT,
    Run,
    cached_result,
    count_params,
    file_sha256,
    train,
)

CONFIG = "configs/shapes/SSIM/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml"
TRAIN_SET, TEST_SET = "d2kd_shapes_train", "d2kd_shapes_test"
STEPS_TIMED = 8
PICTURES = 4
SCORE_SHOWN = 0.5


def parse_args(arguments: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(
        parser,
        config_file=CONFIG,
        output=Path("output/demo"),
        output_help="folder for the results and the trainings; default: output/demo",
    )
    parser.add_argument("--iterations", type=int, default=800, help="iterations of each student")
    parser.add_argument("--seed", type=int, default=1, help="random seed of both students")
    parser.add_argument("--redo", action="store_true", help="discard the results of earlier calls")
    args = parser.parse_args(arguments)
    if args.iterations < 4:
        parser.error("set --iterations to 4 or more: Detectron2 does not time the first three")
    return args


def read_config(path: str, opts: Sequence[str]) -> CfgNode:
    """The distilled student's config, on the CPU if there is no GPU, which is printed.

    Raises:
        ConfigError: a key is unknown or out of range, or the config does not distil on the shapes.
    """
    cfg = load_config(path, opts)
    if not cfg.DISTILL.ENABLED or tuple(cfg.DATASETS.TRAIN) != (TRAIN_SET,):
        raise ConfigError(
            f"the demo needs DISTILL.ENABLED True and DATASETS.TRAIN ('{TRAIN_SET}',), and {path} "
            f"has {cfg.DISTILL.ENABLED} and {cfg.DATASETS.TRAIN}: set --config-file to a config "
            "under configs/shapes/"
        )
    cfg.MODEL.DEVICE, changed = device_or_cpu(cfg.MODEL.DEVICE)
    if changed:
        print(changed, flush=True)
    return cfg


def teacher_config(cfg: CfgNode) -> CfgNode:
    """The teacher's config as the distilled student reads it, evaluated on the shapes' test set."""
    teacher_cfg = read_teacher_config(cfg)
    teacher_cfg.DATASETS.TEST = (TEST_SET,)
    return teacher_cfg


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


def student_run(name: str, distil: bool, teacher: CfgNode, args: Namespace) -> Run:
    """The training of one student; the two differ in DISTILL.ENABLED only.

    Args:
        teacher: from ``teacher_config``.
    """
    opts = {
        "DISTILL.TEACHER.WEIGHTS": teacher.MODEL.WEIGHTS,
        "SOLVER.MAX_ITER": str(args.iterations),
        "SOLVER.STEPS": f"({args.iterations * 4 // 5},)",
        "SEED": str(args.seed),
        "DATASETS.TEST": f"('{TEST_SET}',)",
    }
    pairs = [part for pair in opts.items() for part in pair]
    fixed = ("MODEL.DEVICE", teacher.MODEL.DEVICE, "DISTILL.ENABLED", str(distil))
    options = (*pairs, *args.opts, *fixed)
    return Run(name, args.config_file, args.output / name, options)


def choose_pictures(records: list[dict]) -> list[dict]:
    """Choose the first images with 4 to 7 objects."""
    fitting = [record for record in records if 4 <= len(record["annotations"]) <= 7]
    return (fitting + records)[:PICTURES]


def ground_truth(record: dict) -> Detections:
    objects = record["annotations"]
    boxes = [BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
    return Detections(boxes, [o["category_id"] for o in objects])


def detect(cfg: CfgNode, images: list) -> list[Detections]:
    """Detect with plain Detectron2 in BGR images; scores below SCORE_SHOWN are left out."""
    predictor = DefaultPredictor(cfg)
    found = []
    for image in images:
        instances = predictor(image)["instances"].to("cpu")
        sure = instances[instances.scores >= SCORE_SHOWN]
        classes, scores = sure.pred_classes.numpy(), sure.scores.numpy()
        found.append(Detections(sure.pred_boxes.tensor.numpy(), classes, scores))
    return found


def student_config(folder: Path) -> CfgNode:
    """The config with which plain Detectron2 reads a trained student."""
    cfg = get_cfg()
    add_d2kd_config(cfg)  # has the keys of FCOS and GFL
    cfg.merge_from_file(str(folder / "student.yaml"))
    return cfg


def draw(args: Namespace, teacher_cfg: CfgNode, results: dict[str, dict]) -> None:
    """Write detections.png: ground truth and each detector's detections on a few images."""
    records = choose_pictures(DatasetCatalog.get(TEST_SET))
    images = [cv2.imread(record["file_name"]) for record in records]
    columns = {"ground truth": [ground_truth(record) for record in records]}
    for name, result in results.items():
        cfg = teacher_cfg if name == "teacher" else student_config(args.output / name)
        columns[f"{name}: AP {result['AP']:.1f}"] = detect(cfg, images)
    names = MetadataCatalog.get(TEST_SET).thing_classes
    rgb = [image[:, :, ::-1] for image in images]
    detections_grid(rgb, columns, names, args.output / "detections.png")


def format_table(results: dict[str, dict]) -> str:
    rows = [
        [
            name,
            *(f"{result[key]:.1f}" for key in ("AP", "AP50", "AP75")),
            f"{result['params'] / 1e6:.2f} M",
            f"{result['seconds_per_iter']:.2f}",
        ]
        for name, result in results.items()
    ]
    return tabulate(rows, ["", "AP", "AP50", "AP75", "parameters", "s/iteration"], "github")


def compare(args: Namespace) -> dict[str, dict]:
    """Evaluate the teacher, train both students, and write results and picture.

    Returns:
        dict: "teacher", "baseline" and "distilled" -> AP, AP50, AP75, params, seconds_per_iter.
    """
    cfg = teacher_config(read_config(args.config_file, args.opts))
    results = {"teacher": evaluate_teacher(cfg.clone(), args.output / "teacher")}
    for name, distil in (("baseline", False), ("distilled", True)):
        results[name] = train(student_run(name, distil, cfg, args))
    keys = ("AP", "AP50", "AP75", "params", "seconds_per_iter")
    results = {name: {key: result[key] for key in keys} for name, result in results.items()}
    (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(args, cfg, results)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo; ends with exit status 2 if an option or the config is wrong."""
    args = parse_args(arguments)
    os.chdir(ROOT)
    if args.redo:
        for record in args.output.glob("*/run.json"):
            record.unlink()
    start = time.perf_counter()
    with exit_on_user_error(args.traceback):
        results = compare(args)
    print(f"\n{format_table(results)}\n")
    print(
        f"{args.iterations} iterations, seed {args.seed}, evaluated on {TEST_SET}. "
        f"Time: {(time.perf_counter() - start) / 60:.1f} minutes."
    )
    print(f"Detections: {args.output}/detections.png. Figures: {args.output}/results.json.")


if __name__ == "__main__":
    main()
