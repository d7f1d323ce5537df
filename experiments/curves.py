#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Train students on schedules of doubled length, each to its own end, and compare methods.

    python -m experiments.curves --suite cards --methods TAR SSIM --lengths 600 1200 --jobs 2

Whether a gain lasts is seen only where the baseline has converged: it gains less than 1 AP, on the
validation part, from twice the iterations. The baseline is always trained. A method's seconds hold
its teacher's forward passes: each run fills a cache of its own in memory.

It can be interrupted and started again: finished trainings are kept under output/curves. Teachers
that are absent are trained first. The script writes docs/ablation/curves.json (curves_val.json for
the validation part), a chart for each detector, and the tables of MODEL_ZOO.md.
"""

import argparse
import os
import re
from functools import partial
from itertools import product
from pathlib import Path

from d2kd.config.load import load_config
from experiments.curve_report import Curve, write_curves
from experiments.curve_suites import CURVES, CurveMethod
from experiments.demo.teacher import ensure_teacher
from experiments.suites import BASELINE
from experiments.training_runs import ROOT, Run, device, run_all, train

_SPEED = re.compile(r"Overall training speed: .*\(([\d.]+) s / it\)")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=sorted(CURVES), required=True)
    parser.add_argument("--student", default="A", help="letter of a student of the suite")
    parser.add_argument("--detector", default="faster_rcnn")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: all of the suite")
    parser.add_argument("--lengths", type=int, nargs="+", help="iterations; default: the suite's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, a thread each")
    parser.add_argument("--runs", type=Path, default=Path("output/curves"))
    parser.add_argument("--docs", type=Path, default=Path("docs/ablation"))
    parser.add_argument("--zoo", type=Path, default=Path("MODEL_ZOO.md"))
    return parser.parse_args()


def choose_methods(args: argparse.Namespace) -> list[CurveMethod]:
    """The baseline, then ``--methods`` or all.

    Raises:
        SystemExit: a student, detector or method is unknown.
    """
    students = CURVES[args.suite].students
    if args.student not in students:
        raise SystemExit(f"--student is {args.student!r}: choose one of {', '.join(students)}")
    detectors = students[args.student]
    if args.detector not in detectors:
        raise SystemExit(f"--detector is {args.detector!r}: choose one of {', '.join(detectors)}")
    known = {method.name: method for method in detectors[args.detector]}
    unknown = sorted(set(args.methods or ()) - set(known))
    if unknown:
        raise SystemExit(f"--methods names {unknown}: choose from {list(known)}")
    wanted = [BASELINE, *(args.methods or known)]
    return [method for name, method in known.items() if name in wanted]


def ensure_teachers(methods: list[CurveMethod]) -> None:
    """Train the methods' teachers by their own yaml, where a checkpoint is absent."""
    for method in methods:
        cfg = load_config(method.config, [*method.opts, "MODEL.DEVICE", device()])
        if cfg.DISTILL.ENABLED:
            ensure_teacher(cfg)


def make_run(args: argparse.Namespace, method: CurveMethod, length: int, seed: int) -> Run:
    """One training of a curve."""
    name = method.name.replace(", ", "_")
    folder = args.runs / args.suite / args.student / args.detector / args.split / name
    cache = () if method.name == BASELINE else ("DISTILL.TEACHER.CACHE", "memory")
    opts = (
        *method.opts,
        *cache,
        *("SOLVER.MAX_ITER", str(length)),
        # The shapes' configs lower the learning rate at four fifths; the others use a cosine.
        *("SOLVER.STEPS", f"({length * 4 // 5},)"),
        *("SEED", str(seed)),
        *CURVES[args.suite].splits[args.split],
    )
    output = folder / str(length) / f"seed{seed}"
    return Run(f"{args.suite} {method.name} {length} seed {seed}", method.config, output, opts)


def run_point(run: Run, length: int) -> tuple[float, float]:
    """AP, and seconds of training without evaluation."""
    result = train(run, threads=1, every=100)
    speeds = _SPEED.findall((run.output / "console.txt").read_text())
    return round(result["AP"], 2), round(length * float(speeds[-1]), 1)


def train_curves(args: argparse.Namespace, methods: list[CurveMethod]) -> list[Curve]:
    """Train every method at every length with every seed, ``--jobs`` at a time.

    Raises:
        SystemExit: a training failed; the others were finished.
    """
    lengths, seeds = args.lengths or CURVES[args.suite].lengths, sorted(args.seeds)
    # Short schedules first, seed by seed: an interrupted suite has complete comparisons.
    calls = {
        (method, length, seed): partial(run_point, make_run(args, method, length, seed), length)
        for length, seed, method in product(lengths, seeds, methods)
    }
    found = run_all(calls, args.jobs, _describe)
    curves = []
    for method, length in product(methods, lengths):
        ap, seconds = zip(*(found[method, length, seed] for seed in seeds))
        group = {"suite": args.suite, "student": args.student, "detector": args.detector}
        values = {"seeds": seeds, "ap": list(ap), "seconds": list(seconds)}
        named = {"method": method.name, "paper": method.paper, "iterations": length}
        curves.append(Curve(**group, **named, **values))
    return curves


def _describe(key: tuple[CurveMethod, int, int], point: tuple[float, float]) -> str:
    method, length, seed = key
    return f"{method.name}, {length} iterations, seed {seed}: AP {point[0]:.1f}"


def main() -> None:
    """Train what is absent, and write rows, charts and tables."""
    args = parse_args()
    os.chdir(ROOT)
    methods = choose_methods(args)
    ensure_teachers(methods)
    write_curves(train_curves(args, methods), args.docs, args.split, args.zoo)


if __name__ == "__main__":
    main()
