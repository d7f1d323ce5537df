#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A teacher, a student trained plainly, and the same student distilled, on the synthetic shapes.

python tools/demo.py

The two students start from the same weights and see the same images in the same order. It ends
in a table, ``output/demo/results.json`` and ``output/demo/detections.png``. What an earlier call
with the same settings has finished is kept.
"""

import argparse
import contextlib
import json
import os
import time
from pathlib import Path

import cv2
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from d2kd import DistillTrainer, add_d2kd_config
from d2kd.modeling.build import build_teacher, read_teacher_config
from experiments.plots import Detections, detections_grid
from experiments.training_runs import (
    ROOT,
    Run,
    cached_result,
    count_params,
    device,
    file_sha256,
    train,
)

CONFIG = "configs/shapes/SSIM/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml"
TEST_SET = "d2kd_shapes_test"
STEPS_TIMED = 8
PICTURES = 4
SCORE_SHOWN = 0.5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=800, help="of each student")
    parser.add_argument("--seed", type=int, default=1, help="of both students")
    parser.add_argument("--teacher-weights", default="", help="default: those that are shipped")
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--redo", action="store_true", help="forget what earlier calls finished")
    return parser.parse_args()


def teacher_config(weights: str) -> CfgNode:
    """The teacher's config as the distilled student reads it."""
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_file(CONFIG)
    cfg.MODEL.DEVICE = device()
    cfg.DISTILL.TEACHER.WEIGHTS = weights or cfg.DISTILL.TEACHER.WEIGHTS
    teacher_cfg = read_teacher_config(cfg)
    teacher_cfg.DATASETS.TEST = (TEST_SET,)
    return teacher_cfg


def evaluate_teacher(cfg: CfgNode, output: Path) -> dict[str, float]:
    """Evaluate the teacher, and time its training step as the students' are timed.

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
    settings = {"config": cfg.dump(), "weights": file_sha256(Path(cfg.MODEL.WEIGHTS))}
    return cached_result(output, settings, compute)


def time_training_step(cfg: CfgNode) -> float:
    """Median seconds of a step of plain training, loading included; nothing is kept of it."""
    model = build_model(cfg).train()
    optimizer = DistillTrainer.build_optimizer(cfg, model)
    batches = iter(DistillTrainer.build_train_loader(cfg))
    seconds: list[float] = []
    with EventStorage():
        for _ in range(STEPS_TIMED):
            start = time.perf_counter()
            optimizer.zero_grad()
            sum(model(next(batches)).values()).backward()
            optimizer.step()
            if device() == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return round(sorted(seconds[2:])[len(seconds[2:]) // 2], 4)


def student_run(name: str, distil: bool, teacher: str, args: argparse.Namespace) -> Run:
    """The training of one student; the two differ in DISTILL.ENABLED alone."""
    opts = {
        "DISTILL.ENABLED": str(distil),
        "DISTILL.TEACHER.WEIGHTS": teacher,
        "SOLVER.MAX_ITER": str(args.iterations),
        "SOLVER.STEPS": f"({args.iterations * 4 // 5},)",
        "SEED": str(args.seed),
        "DATASETS.TEST": f"('{TEST_SET}',)",
    }
    pairs = tuple(part for pair in opts.items() for part in pair)
    return Run(name, CONFIG, args.output / name, pairs)


def choose_pictures(records: list[dict]) -> list[dict]:
    """The first images with neither few nor very many objects."""
    fitting = [record for record in records if 4 <= len(record["annotations"]) <= 7]
    return (fitting + records)[:PICTURES]


def ground_truth(record: dict) -> Detections:
    objects = record["annotations"]
    boxes = [BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
    return Detections(boxes, [o["category_id"] for o in objects])


def detect(cfg: CfgNode, images: list) -> list[Detections]:
    """What a detector is sure of in BGR images; plain Detectron2 builds, loads and runs it."""
    predictor = DefaultPredictor(cfg)
    found = []
    for image in images:
        instances = predictor(image)["instances"].to("cpu")
        sure = instances[instances.scores >= SCORE_SHOWN]
        classes, scores = sure.pred_classes.numpy(), sure.scores.numpy()
        found.append(Detections(sure.pred_boxes.tensor.numpy(), classes, scores))
    return found


def student_config(folder: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "student.yaml"))
    return cfg


def draw(args: argparse.Namespace, teacher_cfg: CfgNode, results: dict[str, dict]) -> None:
    """Write detections.png."""
    records = choose_pictures(DatasetCatalog.get(TEST_SET))
    images = [cv2.imread(record["file_name"]) for record in records]
    columns = {"ground truth": [ground_truth(record) for record in records]}
    for name, result in results.items():
        cfg = teacher_cfg if name == "teacher" else student_config(args.output / name)
        columns[f"{name}: AP {result['AP']:.1f}"] = detect(cfg, images)
    names = MetadataCatalog.get(TEST_SET).thing_classes
    rgb = [image[:, :, ::-1] for image in images]
    detections_grid(rgb, columns, names, args.output / "detections.png")


def table(results: dict[str, dict]) -> str:
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


def main() -> None:
    args = parse_args()
    os.chdir(ROOT)
    if args.redo:
        for record in args.output.glob("*/run.json"):
            record.unlink()
    start = time.perf_counter()
    cfg = teacher_config(args.teacher_weights)
    results = {"teacher": evaluate_teacher(cfg.clone(), args.output / "teacher")}
    for name, distil in (("baseline", False), ("distilled", True)):
        results[name] = train(student_run(name, distil, cfg.MODEL.WEIGHTS, args))
    keys = ("AP", "AP50", "AP75", "params", "seconds_per_iter")
    results = {name: {key: result[key] for key in keys} for name, result in results.items()}
    (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(args, cfg, results)
    print(f"\n{table(results)}\n")
    print(
        f"{args.iterations} iterations, seed {args.seed}, evaluated on {TEST_SET}. "
        f"Time: {(time.perf_counter() - start) / 60:.1f} minutes."
    )
    print(f"Look at {args.output}/detections.png; figures are in {args.output}/results.json.")


if __name__ == "__main__":
    main()
