# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""From the times of all tasks to the results' JSON, and from there to a printed table."""

from collections.abc import Iterator

from tabulate import tabulate

from ..utils.timing import Sample
from .tasks import ALL

__all__ = ["format_table", "summarise"]


def summarise(times: dict[str, Sample], names: list[str]) -> dict:
    """Put the times and the ratios between them into JSON.

    Args:
        times: of the tasks of ``build_tasks``.
        names: of the enabled losses.

    Returns:
        dict: seconds, medians over the rounds; ``overhead_ratio`` is that of the distilled step to
        its lower bound, the student's step plus the teacher's forward that the losses need.
    """
    adapters = times["adapters"].median if "adapters" in times else 0.0
    return {
        "student_step_s": times["student"].median,
        "teacher_needed_s": times[f"needed {ALL}"].median,
        "teacher_full_s": times["teacher_full"].median,
        "distilled_step_s": times[f"distilled {ALL}"].median,
        "overhead_ratio": _ratio(times, ALL),
        "overhead_ratio_iqr": round(_ratio_by_round(times).iqr, 4),
        "adapters_s": adapters,
        "overhead_ratio_beyond_adapters": _ratio(times, ALL, adapters),
        "losses": {name: times[f"loss {name}"].median for name in names},
        "each_loss_alone": {
            name: {
                "distilled_step_s": times[f"distilled {name}"].median,
                "teacher_needed_s": times[f"needed {name}"].median,
                "overhead_ratio": _ratio(times, name),
            }
            for name in names
            if f"distilled {name}" in times
        },
        "iqr_s": {name: sample.iqr for name, sample in times.items()},
    }


def _ratio(times: dict[str, Sample], key: str, extra: float = 0.0) -> float:
    """Distilled step over its lower bound; ``extra`` seconds are added to the bound."""
    bound = times["student"].median + times[f"needed {key}"].median + extra
    return round(times[f"distilled {key}"].median / bound, 4)


def _ratio_by_round(times: dict[str, Sample]) -> Sample:
    rounds = zip(*(times[k].values for k in ("student", f"needed {ALL}", f"distilled {ALL}")))
    return Sample(tuple(step / (student + needed) for student, needed, step in rounds))


def format_table(result: dict) -> str:
    """Format each time with its spread and its share of the lower bound, then the ratios."""
    bound = result["student_step_s"] + result["teacher_needed_s"]
    cells = [
        (name, f"{seconds:.4f}", f"{iqr:.4f}", f"{seconds / bound:.3f}")
        for name, seconds, iqr in _rows(result)
    ]
    head = ["", "seconds", "IQR", "of the lower bound"]
    return "\n".join([tabulate(cells, head, disable_numparse=True), "", *_ratio_lines(result)])


def _rows(result: dict) -> Iterator[tuple[str, float, float]]:
    """Name, seconds and interquartile range of each task."""
    spread = result["iqr_s"]
    yield "baseline step", result["student_step_s"], spread["student"]
    yield "teacher, needed parts", result["teacher_needed_s"], spread[f"needed {ALL}"]
    yield "teacher, full inference", result["teacher_full_s"], spread["teacher_full"]
    yield "distilled step", result["distilled_step_s"], spread[f"distilled {ALL}"]
    for name, found in result["each_loss_alone"].items():
        seconds = found["distilled_step_s"]
        yield f"distilled step, {name} alone", seconds, spread[f"distilled {name}"]
    for name, seconds in result["losses"].items():
        yield f"loss {name}", seconds, spread[f"loss {name}"]
    if result["adapters_s"]:
        yield "adapters of loss feature", result["adapters_s"], spread["adapters"]


def _cache_lines(found: dict) -> Iterator[str]:
    """The distilled step over the baseline step, without and with a teacher cache."""
    where, size = found["where"], found["bytes_per_image"] / 1e6
    yield f"teacher cache in {where}, {size:.3f} MB an image; step over the baseline step"
    for kind in ("off", "cold", "warm"):
        now = found[kind]
        yield f"  {kind} {now['over_baseline']:.3f} (IQR {now['iqr']:.3f}), {now['step_s']:.4f} s"


def _ratio_lines(result: dict) -> Iterator[str]:
    yield (
        f"overhead ratio {result['overhead_ratio']:.3f} "
        f"(IQR over the rounds {result['overhead_ratio_iqr']:.3f})"
    )
    if result["adapters_s"]:
        yield f"  with the adapters in the bound {result['overhead_ratio_beyond_adapters']:.3f}"
    for name, found in result["each_loss_alone"].items():
        yield f"  {name} alone {found['overhead_ratio']:.3f}"
    if "cache" in result:
        yield from _cache_lines(result["cache"])
    if "peak_memory_ratio" in result:
        mib = ", ".join(f"{k} {v:.0f}" for k, v in result["peak_memory_mib"].items())
        yield f"peak memory ratio {result['peak_memory_ratio']:.3f} (MiB: {mib})"
    if result["random_weights"]:
        yield f"random weights: {', '.join(result['random_weights'])}"
