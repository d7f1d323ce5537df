#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Write the benchmark's results into BENCHMARK.md.

    python -m experiments.benchmark.report

Each table replaces the text between the lines ``<!-- benchmark <name> -->`` and ``<!-- end -->``.
"""

import argparse
import json
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from tabulate import tabulate

from experiments.report import insert
from experiments.suites import DETECTORS
from experiments.training_runs import ROOT

METHODS = ("TAR", "FRS", "SSIM", "LD", "FRS+LD")
# The largest overhead ratio that a method may have, if other than GOAL.
GOALS = {"SSIM": 1.10}
GOAL, MEMORY_GOAL = 1.05, 1.10
# Heads of columns that several tables have.
SECONDS, BOUND = ("baseline, s", "teacher, s", "distilled, s"), "of the lower bound"


def read_folder(folder: Path) -> list[dict]:
    """Read the benchmark's results from a folder, in the order of the tables' rows."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    # An unfinished file has peak memory only.
    found = [result for result in found if "config" in result]
    for result in found:
        _, method, name = result["config"].rsplit("/", 2)
        result["method"] = method
        result["detector"] = next(d for d in DETECTORS if name.startswith(d))
    order = list(DETECTORS)
    return sorted(found, key=lambda r: (order.index(r["detector"]), METHODS.index(r["method"])))


def machine(result: dict) -> str:
    """Describe the machine of the results in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    return f"{result['device_name']}, {result['cores']} cores, {threads}; {versions}."


def _marked(value: float, goal: float) -> str:
    """Format a ratio, in bold if it is above its goal."""
    return f"{value:.3f}" if value <= goal else f"**{value:.3f}**"


def _goal(method: str) -> float:
    return GOALS.get(method, GOAL)


def _seconds(found: dict) -> list[str]:
    """The cells of the baseline step, the teacher's needed parts and the distilled step."""
    keys = ("student_step_s", "teacher_needed_s", "distilled_step_s")
    return [f"{found[key]:.3f}" for key in keys]


def _table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    return tabulate(rows, head, "pipe", disable_numparse=True) + "\n"


def steps_table(results: list[dict]) -> str:
    """Time and memory of baseline and distilled steps, also relative to the lower bound."""
    head = ["detector", "method", *SECONDS, BOUND, "IQR"]
    head += ["with adapters", "baseline, MiB", "distilled, MiB", "of student + teacher"]
    rows = []
    for found in results:
        mib, goal = found["peak_memory_mib"], _goal(found["method"])
        beyond = found["overhead_ratio_beyond_adapters"]
        rows.append(
            [
                DETECTORS[found["detector"]],
                found["method"],
                *_seconds(found),
                _marked(found["overhead_ratio"], goal),
                f"{found['overhead_ratio_iqr']:.3f}",
                _marked(beyond, goal) if found["adapters_s"] else "",
                f"{mib['student']:.0f}",
                f"{mib['distilled']:.0f}",
                _marked(found["peak_memory_ratio"], MEMORY_GOAL),
            ]
        )
    return f"{_table(rows, head)}\n{machine(results[0])}\n"


def keys_table(results: list[dict]) -> str:
    """The same step under different keys; each row has its own lower bound, measured with it."""
    rows = []
    for found in sorted(results, key=lambda r: (r["method"], -r["overhead_ratio"])):
        pairs = zip(found["opts"][::2], found["opts"][1::2])
        given = ", ".join(f"`{key.removeprefix('DISTILL.TEACHER.')} {x}`" for key, x in pairs)
        cells = [DETECTORS[found["detector"]], found["method"], given or "defaults"]
        ratio = _marked(found["overhead_ratio"], _goal(found["method"]))
        rows.append([*cells, *_seconds(found), ratio])
    head = ["detector", "method", "DISTILL.TEACHER", *SECONDS, BOUND]
    return f"{_table(rows, head)}\n{machine(results[0])}\n"


def losses_table(results: list[dict]) -> str:
    """Each loss's forward and backward, and a step with this loss alone."""
    head = ["detector", "method", "loss", "ms", BOUND, "step with it alone, of its lower bound"]
    rows = []
    for found in results:
        bound = found["student_step_s"] + found["teacher_needed_s"]
        for name, seconds in found["losses"].items():
            of_one = found if len(found["losses"]) == 1 else found["each_loss_alone"].get(name)
            alone = f"{of_one['overhead_ratio']:.3f}" if of_one else ""
            cells = [DETECTORS[found["detector"]], found["method"], name, f"{1000 * seconds:.1f}"]
            rows.append([*cells, f"{seconds / bound:.3f}", alone])
    return _table(rows, head)


def compare_table(result: dict, group: str) -> str:
    """Other implementations beside d2kd's, which comes first in each group."""
    found, rows = result[group], []
    ours = {}
    for name, sample in found.items():
        of_set = re.sub(r"^[^,]*", "", name) if group == "masks" else ""
        ours.setdefault(of_set, sample["seconds"])
        cells = [name, f"{1000 * sample['seconds']:.2f}", f"{1000 * sample['iqr']:.2f}"]
        rows.append([*cells, f"{sample['seconds'] / ours[of_set]:.2f}"])
    return f"{_table(rows, [group, 'ms', 'IQR', 'of d2kd'])}\n{machine(result)}\n"


def exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """The p of ``seconds ~ values ** p`` between the first and the last value."""
    return math.log(seconds[-1] / seconds[0]) / math.log(values[-1] / values[0])


def steepest_exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """The largest p between two neighbouring values; a flat beginning lowers ``exponent``."""
    return max(exponent(values[i : i + 2], seconds[i : i + 2]) for i in range(len(values) - 1))


def growth_tables(result: dict) -> str:
    """One table for each quantity; below it, the exponents of the distilled step's growth."""
    parts = []
    for sweep in dict.fromkeys(point["sweep"] for point in result["points"]):
        found = [point for point in result["points"] if point["sweep"] == sweep]
        rows = [
            [
                point["value"],
                point["method"],
                *_seconds(point),
                _marked(point["overhead_ratio"], _goal(point["method"])),
                f"{point['peak_memory_mib']:.0f}",
            ]
            for point in found
        ]
        head = [sweep, "method", *SECONDS, BOUND, "MiB"]
        parts.append(f"{_table(rows, head)}\n{_growth(sweep, found)}\n")
    return "\n".join([*parts, machine(result) + "\n"])


def _growth(sweep: str, points: list[dict]) -> str:
    """A sentence with the exponents of each method's growth along one sweep."""
    whole, steepest = [], []
    # Doubling the side means four times the pixels.
    of, per = ("pixels", 2) if "side" in sweep else (sweep, 1)
    for method in dict.fromkeys(point["method"] for point in points):
        of_method = [point for point in points if point["method"] == method]
        x = [point["value"] for point in of_method]
        y = [point["distilled_step_s"] for point in of_method]
        whole.append(f"{method} {exponent(x, y) / per:.2f}")
        steepest.append(f"{method} {steepest_exponent(x, y) / per:.2f}")
    text = (
        f"Exponent of the growth with {of}, from the first value to the last: {', '.join(whole)}; "
        f"largest between two neighbouring values: {', '.join(steepest)}."
    )
    return textwrap.fill(text, 100)


def data_table(result: dict) -> str:
    """Seconds of an iteration, and how many of them it waits for its batch."""
    rows = [
        [
            row["set"],
            "distilled" if row["distilled"] else "baseline",
            row["workers"],
            f"{row['seconds']:.3f}",
            f"{row['waiting_s']:.4f}",
            f"{100 * row['share']:.1f} %",
        ]
        for row in result["rows"]
    ]
    head = ["set", "step", "workers", "s/iteration", "waiting, s", "share"]
    return f"{_table(rows, head)}\n{machine(result)}\n"


def tables(folder: Path) -> dict[str, str]:
    """The Markdown of every table whose results are in the folder, by name."""
    makers: dict[str, Callable[[], str]] = {}
    for name in ("shapes", "coco"):
        results = read_folder(folder / name)
        if results:
            makers[name] = lambda results=results: steps_table(results)
            makers[f"{name} losses"] = lambda results=results: losses_table(results)

    keys = read_folder(folder / "keys")
    if keys:
        makers["keys"] = lambda: keys_table(keys)

    def read(name: str) -> dict:
        return json.loads((folder / f"{name}.json").read_text())

    if (folder / "compare.json").is_file():
        makers["ssim"] = lambda: compare_table(read("compare"), "ssim")
        makers["masks"] = lambda: compare_table(read("compare"), "masks")
    whole = {"overhead_ratio", "peak_memory_mib"}
    if (folder / "growth.json").is_file() and all(
        whole <= p.keys() for p in read("growth")["points"]
    ):
        makers["growth"] = lambda: growth_tables(read("growth"))
    if (folder / "data.json").is_file():
        makers["data"] = lambda: data_table(read("data"))
    return {name: make() for name, make in makers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "docs/benchmark", help="of the results"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "BENCHMARK.md", help="markdown")
    args = parser.parse_args()
    for name, text in tables(args.folder).items():
        insert(args.page, f"<!-- benchmark {name} -->", text)


if __name__ == "__main__":
    main()
