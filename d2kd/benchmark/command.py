# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Measure a distilled training step's time and memory, and compare them with its lower bound.

The lower bound of a distilled step is the baseline's step plus the teacher forward that the losses
need. BENCHMARK.md has results and says how they are measured.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..utils.command_line import exit_on_user_error
from ..utils.malloc import keep_freed_memory
from ..utils.timing import describe_machine, interleave
from .cached import bytes_per_image, cached_tasks, summarise_cache, temporary_cache
from .memory import measure_peaks
from .networks import build_networks, read_config
from .options import load_batches, parse_args
from .summary import format_table, summarise
from .tasks import build_tasks

__all__ = ["known_peaks", "main", "measure"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, print a table, and write ``--output``.

    Raises:
        SystemExit: 2, if an option or the config is wrong.
    """
    args = parse_args(__doc__.splitlines()[0], arguments)
    with exit_on_user_error(args.traceback):
        result = measure(args)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(format_table(result))


def measure(args: Namespace) -> dict:
    """Build both networks and measure their steps.

    Returns:
        dict: what ``summarise`` gives, peak memory, the settings and the machine; JSON.
    """
    cfg = read_config(args.config_file, args.opts, args.modules)
    keep_freed_memory(cfg.MODEL.DEVICE)
    pair = build_networks(cfg, args.random_weights)
    names = list(pair.losses)
    peaks = known_peaks(args.output) if args.keep_memory else {}
    if not peaks and not args.no_memory:
        peaks = measure_peaks(args, pair.requires(names))
    batches = load_batches(cfg, args)
    tasks, cached = build_tasks(pair, batches, not args.no_alone), {}
    with temporary_cache(args.cache) as cache:
        if cache:
            tasks.update(cached_tasks(pair, batches, cache))
            each = bytes_per_image(pair.distiller(names, cache), batches[0])
            cached = {"where": args.cache, "bytes_per_image": round(each)}
        times = interleave(tasks, args.steps, args.warmup)
    if cached:
        cached = {"cache": {**cached, **summarise_cache(times)}}
    return {
        "config": args.config_file,
        "opts": args.opts,
        "batch": "data" if args.data else [args.batch, *args.size],
        "boxes_per_image": None if args.data else args.boxes,
        "random_weights": pair.random,
        "steps": args.steps,
        **summarise(times, names),
        **cached,
        **peaks,
        **describe_machine(cfg.MODEL.DEVICE),
    }


def known_peaks(path: Path) -> dict:
    """Read the peak memory of earlier results; returns {} if there are none."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {key: found[key] for key in ("peak_memory_ratio", "peak_memory_mib") if key in found}
