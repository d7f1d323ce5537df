#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Say what a distilled step costs: seconds, and how far above its floor.

    python tools/benchmark.py --json out.json \\
        --config-file configs/shapes/TAR/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml

The floor of a distilled step is a plain student step plus the teacher's forward, without gradients,
of exactly the parts that the losses read, as Detectron2 builds it. BENCHMARK.md holds results and
says how they are measured.
"""

import json
import warnings
from pathlib import Path

# torch's, of what Detectron2 calls: nobody can act on them here.
warnings.simplefilter("ignore", FutureWarning)

from tabulate import tabulate

from ..utils.malloc import keep_freed_memory
from ..utils.timing import Sample, describe_machine, interleave
from .memory import measure_peaks
from .networks import Pair, build_networks, read_config
from .options import load_batches, parse_args
from .tasks import (
    Task,
    adapters_task,
    loss_task,
    record_batches,
    teacher_full,
    teacher_needed,
    train_step,
)

ALL = "all"


def build_tasks(pair: Pair, batches: list[list[dict]], alone: bool = True) -> dict[str, Task]:
    """Everything that is timed, by name; ``alone``: also steps under one loss alone."""
    recorded, names = record_batches(pair, batches), list(pair.losses)
    regions, teacher = [now.regions for now in recorded], pair.teacher
    sets = {ALL: names, **({name: [name] for name in names} if alone and len(names) > 1 else {})}
    tasks = {"student": train_step(pair.cfg, pair.stock, batches)}
    tasks["teacher_full"] = teacher_full(teacher.model, batches)
    for key, chosen in sets.items():
        requires = pair.requires(chosen)
        tasks[f"needed {key}"] = teacher_needed(pair.cfg, teacher, requires, batches, regions)
        tasks[f"distilled {key}"] = train_step(pair.cfg, pair.distiller(chosen), batches)
    for name in names:
        tasks[f"loss {name}"] = loss_task(pair.losses[name], recorded)
    feature = getattr(pair.losses, "feature", None)
    if feature is not None and len(list(feature.parameters())):
        tasks["adapters"] = adapters_task(feature, recorded)
    return tasks


def summarise(times: dict[str, Sample], names: list[str]) -> dict:
    """The times as JSON: seconds and the ratios between them."""
    single = [name for name in names if f"distilled {name}" in times]

    def ratio(key: str, extra: float = 0.0) -> float:
        floor = times["student"].median + times[f"needed {key}"].median + extra
        return round(times[f"distilled {key}"].median / floor, 4)

    rounds = zip(*(times[k].values for k in ("student", f"needed {ALL}", f"distilled {ALL}")))
    by_round = Sample(tuple(step / (student + needed) for student, needed, step in rounds))
    adapter = times["adapters"].median if "adapters" in times else 0.0
    return {
        "student_step_s": times["student"].median,
        "teacher_needed_s": times[f"needed {ALL}"].median,
        "teacher_full_s": times["teacher_full"].median,
        "distilled_step_s": times[f"distilled {ALL}"].median,
        "overhead_ratio": ratio(ALL),
        "overhead_ratio_iqr": round(by_round.iqr, 4),
        "adapters_s": adapter,
        "overhead_ratio_beyond_adapters": ratio(ALL, adapter),
        "losses": {name: times[f"loss {name}"].median for name in names},
        "each_loss_alone": {
            name: {
                "distilled_step_s": times[f"distilled {name}"].median,
                "teacher_needed_s": times[f"needed {name}"].median,
                "overhead_ratio": ratio(name),
            }
            for name in single
        },
        "iqr_s": {name: sample.iqr for name, sample in times.items()},
    }


def table(result: dict) -> str:
    """Each time with its spread, and what it is of the floor of all losses."""
    floor = result["student_step_s"] + result["teacher_needed_s"]
    spread, alone = result["iqr_s"], result["each_loss_alone"]
    rows = [
        ("plain student step", result["student_step_s"], spread["student"]),
        ("teacher, what is read", result["teacher_needed_s"], spread[f"needed {ALL}"]),
        ("teacher, full inference", result["teacher_full_s"], spread["teacher_full"]),
        ("distilled step", result["distilled_step_s"], spread[f"distilled {ALL}"]),
        *(
            (f"  {n} alone", x["distilled_step_s"], spread[f"distilled {n}"])
            for n, x in alone.items()
        ),
        *((f"loss {n}", x, spread[f"loss {n}"]) for n, x in result["losses"].items()),
    ]
    if result["adapters_s"]:
        rows.append(("  of it adapters", result["adapters_s"], spread["adapters"]))
    cells = [(name, f"{s:.4f}", f"{q:.4f}", f"{s / floor:.3f}") for name, s, q in rows]
    lines = [tabulate(cells, ["", "seconds", "IQR", "of the floor"], disable_numparse=True), ""]
    lines.append(f"overhead ratio {result['overhead_ratio']:.3f}")
    lines[-1] += f" (IQR of the rounds {result['overhead_ratio_iqr']:.3f})"
    if result["adapters_s"]:
        beyond = result["overhead_ratio_beyond_adapters"]
        lines.append(f"  with the adapters in the floor {beyond:.3f}")
    lines += [f"  {n} alone {x['overhead_ratio']:.3f}" for n, x in alone.items()]
    if "peak_memory_ratio" in result:
        mib = ", ".join(f"{k} {v:.0f}" for k, v in result["peak_memory_mib"].items())
        lines.append(f"peak memory ratio {result['peak_memory_ratio']:.3f} (MiB: {mib})")
    if result["random_weights"]:
        lines.append(f"random weights: {', '.join(result['random_weights'])}")
    return "\n".join(lines)


def known_peaks(path: Path) -> dict:
    """What results say of memory; {} if there are none."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {key: found[key] for key in ("peak_memory_ratio", "peak_memory_mib") if key in found}


def main() -> None:
    args = parse_args(__doc__.splitlines()[0])
    cfg = read_config(args.config_file, args.opts)
    keep_freed_memory(cfg.MODEL.DEVICE)
    pair = build_networks(cfg, args.random_weights)
    peaks = known_peaks(args.json) if args.keep_memory else {}
    if not peaks and not args.no_memory:
        peaks = measure_peaks(args, pair.requires(list(pair.losses)))
    tasks = build_tasks(pair, load_batches(cfg, args), not args.no_alone)
    times = interleave(tasks, args.steps, args.warmup)
    result = {
        "config": args.config_file,
        "opts": args.opts,
        "batch": "data" if args.data else [args.batch, *args.size],
        "boxes_per_image": None if args.data else args.boxes,
        "random_weights": pair.random,
        "steps": args.steps,
        **summarise(times, list(pair.losses)),
        **peaks,
        **describe_machine(cfg.MODEL.DEVICE),
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
