#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Write the benchmark's results into BENCHMARK.md.

    python -m experiments.benchmark.report

Each table replaces what stands between the lines ``<!-- benchmark <name> -->`` and
``<!-- end -->``.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tabulate import tabulate

from experiments.report import insert
from experiments.suites import DETECTORS
from experiments.training_runs import ROOT

METHODS = ("TAR", "FRS", "SSIM", "LD", "FRS+LD")
# What the overhead ratio may be, by the method's name.
GOALS = {"SSIM": 1.10}
GOAL, MEMORY_GOAL = 1.05, 1.10


def read_folder(folder: Path) -> list[dict]:
    """The results of tools/benchmark.py in a folder, a row of each table for each, in order."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    # A file may hold memory alone yet.
    found = [result for result in found if "config" in result]
    for result in found:
        _, method, name = result["config"].rsplit("/", 2)
        result["method"] = method
        result["detector"] = next(d for d in DETECTORS if name.startswith(d))
    order = list(DETECTORS)
    return sorted(found, key=lambda r: (order.index(r["detector"]), METHODS.index(r["method"])))


def machine(result: dict) -> str:
    """What the results were measured on, in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    return f"{result['device_name']}, {result['cores']} cores, {threads}; {versions}."


def _marked(value: float, goal: float) -> str:
    """Bold where the goal is missed."""
    return f"{value:.3f}" if value <= goal else f"**{value:.3f}**"


def _goal(method: str) -> float:
    return GOALS.get(method, GOAL)


def _seconds(found: dict) -> list[str]:
    """Cells for a plain step, the teacher's needed parts and a distilled step."""
    keys = ("student_step_s", "teacher_needed_s", "distilled_step_s")
    return [f"{found[key]:.3f}" for key in keys]


def _table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    return tabulate(rows, head, "pipe", disable_numparse=True) + "\n"


def steps_table(results: list[dict]) -> str:
    """Seconds and memory of plain and distilled steps, and how far these are above their floor."""
    head = ["detector", "method", "plain, s", "teacher, s", "distilled, s", "of the floor", "IQR"]
    head += ["adapters in it", "plain, MiB", "distilled, MiB", "of its floor"]
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
    """What keys make of the same step; each row has its own floor, measured beside it."""
    rows = []
    for found in sorted(results, key=lambda r: (r["method"], -r["overhead_ratio"])):
        pairs = zip(found["opts"][::2], found["opts"][1::2])
        given = ", ".join(f"`{key.removeprefix('DISTILL.TEACHER.')} {x}`" for key, x in pairs)
        cells = [DETECTORS[found["detector"]], found["method"], given or "defaults"]
        ratio = _marked(found["overhead_ratio"], _goal(found["method"]))
        rows.append([*cells, *_seconds(found), ratio])
    head = ["detector", "method", "DISTILL.TEACHER", "plain, s", "teacher, s", "distilled, s"]
    return f"{_table(rows, [*head, 'of the floor'])}\n{machine(results[0])}\n"


def losses_table(results: list[dict]) -> str:
    """Each loss's forward and backward, and a step under it alone."""
    head = ["detector", "method", "loss", "ms", "of the floor", "step under it alone, of its floor"]
    rows = []
    for found in results:
        floor = found["student_step_s"] + found["teacher_needed_s"]
        for name, seconds in found["losses"].items():
            of_one = found if len(found["losses"]) == 1 else found["each_loss_alone"].get(name)
            alone = f"{of_one['overhead_ratio']:.3f}" if of_one else ""
            cells = [DETECTORS[found["detector"]], found["method"], name, f"{1000 * seconds:.1f}"]
            rows.append([*cells, f"{seconds / floor:.3f}", alone])
    return _table(rows, head)


def compare_table(result: dict, group: str) -> str:
    """Alternatives beside d2kd's, which stands first in each set of them."""
    found, rows = result[group], []
    ours = {}
    for name, sample in found.items():
        of_set = re.sub(r"^[^,]*", "", name) if group == "masks" else ""
        ours.setdefault(of_set, sample["seconds"])
        cells = [name, f"{1000 * sample['seconds']:.2f}", f"{1000 * sample['iqr']:.2f}"]
        rows.append([*cells, f"{sample['seconds'] / ours[of_set]:.2f}"])
    return f"{_table(rows, [group, 'ms', 'IQR', 'of d2kd'])}\n{machine(result)}\n"


def exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """p of ``seconds ~ values ** p`` from the first to the last of them."""
    return math.log(seconds[-1] / seconds[0]) / math.log(values[-1] / values[0])


def steepest_exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """The largest p between two neighbours: what a flat beginning hides from ``exponent``."""
    return max(exponent(values[i : i + 2], seconds[i : i + 2]) for i in range(len(values) - 1))


def growth_tables(result: dict) -> str:
    """One table for each quantity; below it, the powers by which a distilled step grows."""
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
        head = [sweep, "method", "plain, s", "teacher, s", "distilled, s", "of the floor", "MiB"]
        parts.append(f"{_table(rows, head)}\n{_growth(sweep, found)}\n")
    return "\n".join([*parts, machine(result) + "\n"])


def _growth(sweep: str, points: list[dict]) -> str:
    """The powers by which each method's step grows along one sweep, as a sentence."""
    whole, steepest = [], []
    # Twice as long a side is four times the pixels.
    of, per = ("pixels", 2) if "side" in sweep else (sweep, 1)
    for method in dict.fromkeys(point["method"] for point in points):
        of_method = [point for point in points if point["method"] == method]
        x = [point["value"] for point in of_method]
        y = [point["distilled_step_s"] for point in of_method]
        whole.append(f"{method} {exponent(x, y) / per:.2f}")
        steepest.append(f"{method} {steepest_exponent(x, y) / per:.2f}")
    return (
        f"Grows with {of}, from the first value to the last, to the power of: {', '.join(whole)}; "
        f"between two neighbours at most: {', '.join(steepest)}."
    )


def data_table(result: dict) -> str:
    """How long a step is, and how long it waits for its batch."""
    rows = [
        [
            row["set"],
            "distilled" if row["distilled"] else "plain",
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
    """Name -> markdown of every table whose results are in the folder."""
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
    parser.add_argument("--folder", type=Path, default=ROOT / "docs/benchmark", help="of results")
    parser.add_argument("--page", type=Path, default=ROOT / "BENCHMARK.md", help="markdown")
    args = parser.parse_args()
    for name, text in tables(args.folder).items():
        insert(args.page, f"<!-- benchmark {name} -->", text)


if __name__ == "__main__":
    main()
