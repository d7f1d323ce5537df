#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Rerun the comparison of all methods, each with several seeds.

    python -m experiments.ablation --suite shapes --seeds 1 2 3 --jobs 3

It can be interrupted and started again: finished trainings are kept under output/ablation. First
it trains the teachers that are absent. Then it times each method's step with nothing else running.
Then it trains the students, ``--jobs`` at a time with one thread each.

A method is compared with two baselines. One has the same number of iterations. The other trains at
least as long: its iterations are raised by the ratio of the seconds per iteration, rounded up to
fifths so that methods share baselines. The script writes docs/ablation/<suite>.json,
<detector>.png and the tables of MODEL_ZOO.md.
"""

import argparse
import math
import os
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from experiments.report import Row, write_report
from experiments.suites import BASELINE, INHERIT, SUITES, Method, teacher_config
from experiments.training_runs import ROOT, Run, execute, metrics, run_all, train

TIMED_ITERATIONS = 60
TIMED_ROUNDS = 2


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=sorted(SUITES), default="shapes")
    parser.add_argument("--detector", default="all", help="a detector of the suite, or all")
    parser.add_argument(
        "--only", nargs="+", metavar="METHOD", help="compare only these with the baseline"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--iterations", type=int, help="iterations of each student; default: the suite's"
    )
    parser.add_argument(
        "--inherit", action="store_true", help="start students from parts of the teacher"
    )
    parser.add_argument("--dataset", choices=("val", "test"), default="test")
    parser.add_argument(
        "--jobs", type=int, default=1, help="trainings at a time, with a thread each"
    )
    parser.add_argument(
        "--time-only", action="store_true", help="train the teachers, time the methods, and stop"
    )
    parser.add_argument("--timed-iterations", type=int, default=TIMED_ITERATIONS)
    parser.add_argument("--runs", type=Path, default=Path("output/ablation"))
    parser.add_argument("--teachers", type=Path, help="default: output/<suite>")
    parser.add_argument("--docs", type=Path, default=Path("docs/ablation"))
    parser.add_argument(
        "--zoo", type=Path, default=Path("MODEL_ZOO.md"), help="page that gets the tables"
    )
    args = parser.parse_args()
    args.iterations = args.iterations or SUITES[args.suite].iterations
    args.teachers = args.teachers or Path("output") / args.suite
    return args


@dataclass(frozen=True)
class Student:
    """A row of the table before its training."""

    detector: str
    method: Method
    inherit: bool
    budget: str
    iterations: int
    base_iterations: int
    seconds_per_iter: float
    equal_time_iterations: int

    def run(self, args: argparse.Namespace, seed: int) -> Run:
        """The training with one seed."""
        opts = [
            *self.method.opts,
            *("SOLVER.MAX_ITER", str(self.iterations)),
            # The shapes' configs lower the learning rate at four fifths; BCCD's use a cosine.
            *("SOLVER.STEPS", f"({self.iterations * 4 // 5},)"),
            *("SEED", str(seed)),
            *SUITES[args.suite].splits[args.dataset],
        ]
        if self.inherit:
            opts += ["DISTILL.STUDENT.INHERIT", str(list(INHERIT[self.detector]))]
        parts = [self.method.name, *(["inherit"] if self.inherit else []), str(self.iterations)]
        name = _slug(" ".join(parts))
        folder = _folder(args, self.detector) / args.dataset / name / f"seed{seed}"
        return Run(f"{self.detector} {name} seed {seed}", self.method.config, folder, tuple(opts))


def _slug(name: str) -> str:
    return name.replace(" + ", "+").replace(" ", "_")


def _folder(args: argparse.Namespace, detector: str) -> Path:
    return args.runs / args.suite / detector


def choose_methods(args: argparse.Namespace) -> dict[str, list[Method]]:
    """The methods to compare for each detector: the baseline and ``--only``, or all.

    Raises:
        SystemExit: a name is unknown.
    """
    suite = SUITES[args.suite].methods
    if args.detector not in ("all", *suite):
        raise SystemExit(f"--detector is {args.detector!r}: choose one of all, {', '.join(suite)}")
    chosen = suite if args.detector == "all" else {args.detector: suite[args.detector]}
    if args.only is None:
        return {detector: list(methods) for detector, methods in chosen.items()}
    known = {m.name: None for methods in chosen.values() for m in methods}
    unknown = sorted(set(args.only) - set(known))
    if unknown:
        raise SystemExit(
            f"--only names {unknown}, but --detector {args.detector} has {list(known)}"
        )
    wanted = (BASELINE, *args.only)
    cut = {d: [m for m in methods if m.name in wanted] for d, methods in chosen.items()}
    return {detector: methods for detector, methods in cut.items() if len(methods) > 1}


def ensure_teacher(args: argparse.Namespace, detector: str) -> tuple[str, float]:
    """Train the detector's teacher by its own yaml if it is absent; returns its path and AP."""
    folder = args.teachers / f"{detector}_teacher"
    weights = folder / "model_final.pth"
    if not weights.is_file():
        execute(Run(f"{detector} teacher", teacher_config(args.suite, detector), folder))
    return str(weights), round(metrics(folder / "metrics.json")["AP"], 2)


def with_teacher(method: Method, weights: str) -> Method:
    """The method under these teacher weights."""
    return method._replace(opts=(*method.opts, "DISTILL.TEACHER.WEIGHTS", weights))


def time_methods(
    args: argparse.Namespace, detector: str, methods: list[Method]
) -> dict[str, float]:
    """Measure each method's seconds per iteration, one after the other on one thread.

    The result is the lowest over several rounds, because other work on the machine only adds time.
    """
    times = {method.name: math.inf for method in methods}
    for turn, method in product(range(TIMED_ROUNDS), methods):
        folder = _folder(args, detector) / "timing" / f"{_slug(method.name)}_{turn}"
        opts = (*method.opts, "SOLVER.MAX_ITER", str(args.timed_iterations), "DATASETS.TEST", "()")
        run = Run(f"{detector} {_slug(method.name)} timing", method.config, folder, opts)
        seconds = train(run, threads=1)["seconds_per_iter"]
        times[method.name] = min(times[method.name], seconds)
        print(f"{detector} {method.name}: {seconds:.3f} s per iteration", flush=True)
    return times


def plan(
    args: argparse.Namespace, detector: str, methods: list[Method], times: dict[str, float]
) -> list[Student]:
    """List the students to train: the baseline, each method, and the longer baselines."""
    base = args.iterations
    baseline = Student(
        detector, methods[0], args.inherit, "iterations", base, base, times[BASELINE], base
    )
    distilled = [
        replace(
            baseline,
            method=method,
            seconds_per_iter=times[method.name],
            equal_time_iterations=equal_time_iterations(base, times[method.name] / times[BASELINE]),
        )
        for method in methods[1:]
    ]
    longer = sorted({s.equal_time_iterations for s in distilled} - {base})
    return [
        baseline,
        *distilled,
        *(replace(baseline, budget="time", iterations=n, equal_time_iterations=n) for n in longer),
    ]


def equal_time_iterations(iterations: int, ratio: float) -> int:
    """Iterations of a baseline that trains at least as long as a method.

    Args:
        iterations: the method's.
        ratio: the method's seconds per iteration over the baseline's.
    """
    return round(iterations * max(5, math.ceil(5 * ratio)) / 5)


def train_all(
    args: argparse.Namespace, students: list[Student]
) -> dict[Student, dict[int, dict[str, float]]]:
    """Train every student with every seed, ``--jobs`` at a time with one thread each.

    Returns:
        dict: student -> seed -> results.

    Raises:
        SystemExit: a training failed; the others were finished.
    """
    # Seed by seed, so that an interrupted suite has complete comparisons.
    calls = {
        (student, seed): partial(train, student.run(args, seed), threads=1, every=100)
        for seed in args.seeds
        for student in students
    }
    found = run_all(
        calls,
        args.jobs,
        lambda key, result: f"{key[0].run(args, key[1]).name}: AP {result['AP']:.1f}",
    )
    return {student: {seed: found[student, seed] for seed in args.seeds} for student in students}


def make_row(student: Student, results: dict[int, dict[str, float]], teacher_ap: float) -> Row:
    """The row of a trained student, from its results by seed."""
    return Row(
        detector=student.detector,
        method=student.method.name,
        inherit=student.inherit,
        budget=student.budget,
        iterations=student.iterations,
        base_iterations=student.base_iterations,
        equal_time_iterations=student.equal_time_iterations,
        seconds_per_iter=student.seconds_per_iter,
        teacher_ap=teacher_ap,
        seeds=sorted(results),
        ap=[round(results[seed]["AP"], 2) for seed in sorted(results)],
        ap50=[round(results[seed]["AP50"], 2) for seed in sorted(results)],
        config=student.method.config,
        opts=list(student.method.opts),
    )


def main() -> None:
    """Train, measure and report all chosen methods."""
    args = parse_args()
    os.chdir(ROOT)
    for detector, methods in choose_methods(args).items():
        weights, teacher_ap = ensure_teacher(args, detector)
        methods = [with_teacher(method, weights) for method in methods]
        times = time_methods(args, detector, methods)
        if not args.time_only:
            results = train_all(args, plan(args, detector, methods, times))
            rows = [make_row(student, found, teacher_ap) for student, found in results.items()]
            name = args.suite if args.dataset == "test" else f"{args.suite}_{args.dataset}"
            write_report(rows, args.docs, name, args.zoo)


if __name__ == "__main__":
    main()
