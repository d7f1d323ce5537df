# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Train a student with and without a teacher, and compare the three.

    python tools/demo.py --data shapes

The data are synthetic shapes, or photographs of cards or of blood cells (bccd). The teacher of the
shapes is shipped. Those of the photographs are trained first, by their own yaml, and kept.

Both students start from the same weights and see the same images in the same order. The demo
prints a table and writes ``results.json`` and ``detections.png``. Results of an earlier call with
the same settings are kept.
"""

import json
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from tabulate import tabulate

from d2kd import add_d2kd_config
from d2kd.config.load import load_config
from d2kd.data.datasets.declared import register_custom_datasets
from d2kd.utils.command_line import exit_on_user_error
from d2kd.utils.common_arguments import add_common_arguments
from d2kd.utils.device import device_or_cpu
from d2kd.utils.errors import ConfigError
from experiments.demo.datasets import DEMOS
from experiments.demo.photographs import ensure_photographs
from experiments.demo.pictures import draw_detections
from experiments.demo.teacher import ensure_teacher, evaluate_teacher, teacher_config
from experiments.training_runs import ROOT, Run, train


def parse_args(arguments: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(
        parser,
        required=False,
        output_help="folder for the results and the trainings; default: output/demo for the "
        "shapes, output/demo_DATA for the others",
    )
    parser.add_argument("--data", choices=list(DEMOS), default="shapes")
    parser.add_argument(
        "--iterations",
        type=int,
        help="iterations of each student; default: 800, 600 on photographs",
    )
    parser.add_argument("--seed", type=int, default=1, help="random seed of both students")
    parser.add_argument(
        "--redo",
        action="store_true",
        help="discard the results of earlier calls; a teacher that was trained stays",
    )
    args = parser.parse_args(arguments)
    args.config_file = args.config_file or DEMOS[args.data].config
    args.output = args.output or Path("output", _folder(args.data))
    if args.iterations is None:
        args.iterations = DEMOS[args.data].iterations
    if args.iterations < 4:
        parser.error("set --iterations to 4 or more: Detectron2 does not time the first three")
    return args


def _folder(data: str) -> str:
    return "demo" if data == "shapes" else f"demo_{data}"


def read_config(args: Namespace) -> CfgNode:
    """The distilled student's config, on the CPU if there is no GPU, which is printed.

    Raises:
        ConfigError: a key is unknown or out of range, or the config does not distil on the data.
    """
    path, train_set = args.config_file, DEMOS[args.data].train_set
    cfg = load_config(path, args.opts)
    if not cfg.DISTILL.ENABLED or tuple(cfg.DATASETS.TRAIN) != (train_set,):
        raise ConfigError(
            f"the demo needs DISTILL.ENABLED True and DATASETS.TRAIN ('{train_set}',), and {path} "
            f"has {cfg.DISTILL.ENABLED} and {cfg.DATASETS.TRAIN}: set --config-file to a config "
            f"under configs/{args.data}/, or --data to the data of this one"
        )
    cfg.MODEL.DEVICE, changed = device_or_cpu(cfg.MODEL.DEVICE)
    if changed:
        print(changed, flush=True)
    return cfg


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
        "DATASETS.TEST": f"('{DEMOS[args.data].test_set}',)",
    }
    pairs = [part for pair in opts.items() for part in pair]
    fixed = ("MODEL.DEVICE", teacher.MODEL.DEVICE, "DISTILL.ENABLED", str(distil))
    options = (*pairs, *args.opts, *fixed)
    return Run(name, args.config_file, args.output / name, options)


def student_config(folder: Path) -> CfgNode:
    """The config with which plain Detectron2 reads a trained student."""
    cfg = get_cfg()
    add_d2kd_config(cfg)  # has the keys of FCOS and GFL
    cfg.merge_from_file(str(folder / "student.yaml"))
    return cfg


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
    cfg, test_set = read_config(args), DEMOS[args.data].test_set
    prepare(args.data, cfg)
    teacher_cfg = teacher_config(cfg, test_set)
    results = {"teacher": evaluate_teacher(teacher_cfg.clone(), args.output / "teacher")}
    for name, distil in (("baseline", False), ("distilled", True)):
        results[name] = train(student_run(name, distil, teacher_cfg, args))
    keys = ("AP", "AP50", "AP75", "params", "seconds_per_iter")
    results = {name: {key: result[key] for key in keys} for name, result in results.items()}
    (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    detectors = {
        f"{name}: AP {result['AP']:.1f}": (
            teacher_cfg if name == "teacher" else student_config(args.output / name)
        )
        for name, result in results.items()
    }
    draw_detections(test_set, detectors, args.output / "detections.png")
    return results


def prepare(data: str, cfg: CfgNode) -> None:
    """Bring what the demo needs: the photographs, and a trained teacher.

    Raises:
        D2kdError: something cannot be had; the message says how to get it.
    """
    if DEMOS[data].clone is not None:
        ensure_photographs(data, DEMOS[data].clone)
    register_custom_datasets(cfg)
    ensure_teacher(cfg)


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
        f"{args.iterations} iterations, seed {args.seed}, evaluated on "
        f"{DEMOS[args.data].test_set}. Time: {(time.perf_counter() - start) / 60:.1f} minutes."
    )
    print(f"Detections: {args.output}/detections.png. Figures: {args.output}/results.json.")


if __name__ == "__main__":
    main()
