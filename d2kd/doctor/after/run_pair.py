# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Whether two runs can be compared: a distilled one and the baseline that it should beat."""

import os
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode

from ...config import get_value
from ...config.load import all_keys
from ...config.spelling import normalize, same_value
from ...data import num_classes
from ...data.class_names import same_class_names
from ...utils.errors import ConfigError, DatasetError
from ..finding import Finding, warning
from .run_folder import RunFolder

__all__ = ["check_pair_of_runs"]

# Groups of keys in which a difference is a second reason for another AP.
_GROUPS = ("MODEL", "SOLVER", "INPUT", "TEST", "DATALOADER")
# Where it is computed, and how often it is saved and evaluated.
_FREE = (
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
)
_MOST_KEYS = 6


def check_pair_of_runs(distilled: RunFolder, baseline: RunFolder) -> list[Finding]:
    """Refuse what cannot be compared; warn of what blurs the comparison.

    Raises:
        ConfigError: both are one folder, they are swapped, or neither is distilled.
        DatasetError: they were trained or are tested on other data or classes.
    """
    _check_roles(distilled, baseline)
    _check_data(distilled, baseline)
    return [
        *_second_teacher(baseline),
        *_seeds(distilled, baseline),
        *_keys(distilled, baseline),
        *_start(distilled, baseline),
        *_length(distilled, baseline),
    ]


def _check_roles(distilled: RunFolder, baseline: RunFolder) -> None:
    if os.path.realpath(distilled.folder) == os.path.realpath(baseline.folder):
        raise ConfigError(
            f"--after was given {distilled.folder} twice: give the folder of the distilled run, "
            "then that of its baseline"
        )
    if distilled.distilled:
        return
    if baseline.distilled:
        raise ConfigError(
            f"the folders are swapped: {distilled.folder} was trained without a teacher, "
            f"{baseline.folder} under one. Call it with --after {baseline.folder} "
            f"{distilled.folder}"
        )
    raise ConfigError(
        f"neither {distilled.folder} nor {baseline.folder} was trained under a teacher "
        "(DISTILL.ENABLED is False in both config.yaml): give the distilled run first"
    )


def _check_data(distilled: RunFolder, baseline: RunFolder) -> None:
    for key in ("TRAIN", "TEST"):
        ours, theirs = (_sets(run.cfg, key) for run in (distilled, baseline))
        if ours != theirs:
            raise DatasetError(
                f"the runs differ in DATASETS.{key}: {_show(ours)} in {distilled.folder}, "
                f"{_show(theirs)} in {baseline.folder}. Their APs cannot be compared: "
                + (
                    "train the baseline on the same sets"
                    if key == "TRAIN"
                    else "add DATASETS.TEST to the command, set to one set for both"
                )
            )
    counts = [num_classes(run.cfg) for run in (distilled, baseline)]
    names = [run.classes for run in (distilled, baseline)]
    if counts[0] != counts[1] or (all(names) and not same_class_names(*names)):
        shown = [", ".join(x) or f"{n} classes" for x, n in zip(names, counts)]
        raise DatasetError(
            f"the runs have other classes: {shown[0]} in {distilled.folder}, {shown[1]} in "
            f"{baseline.folder}: train the baseline on the same classes"
        )


def _sets(cfg: CfgNode, key: str) -> dict[str, Any]:
    """The sets of a split by name, with what the config declares of each."""
    custom = cfg.DATASETS.CUSTOM
    return {name: dict(custom[name]) if name in custom else None for name in cfg.DATASETS[key]}


def _show(sets: dict[str, Any]) -> str:
    shown = [f"{name} {declared}" if declared else name for name, declared in sets.items()]
    return ", ".join(shown) or "none"


def _second_teacher(baseline: RunFolder) -> Iterator[Finding]:
    if baseline.distilled:
        text = f"{baseline.folder} was distilled too: what follows compares two ways to distil"
        yield warning("baseline", text, "train it with DISTILL.ENABLED False for a baseline")


def _seeds(distilled: RunFolder, baseline: RunFolder) -> Iterator[Finding]:
    seeds = [run.cfg.SEED for run in (distilled, baseline)]
    if min(seeds) < 0:
        text = f"SEED is {seeds[0]} and {seeds[1]}: a negative one is drawn anew in each training"
        yield warning("seeds", text, "set one SEED of 0 or above for both, to start alike")
    elif seeds[0] != seeds[1]:
        text = f"SEED is {seeds[0]} and {seeds[1]}: the runs started apart and saw other batches"
        yield warning("seeds", text, f"train the baseline with SEED {seeds[0]}")


def _keys(distilled: RunFolder, baseline: RunFolder) -> Iterator[Finding]:
    ours, theirs = (_values(run.cfg) for run in (distilled, baseline))
    differ = [
        f"{key} {ours[key]!r} and {theirs[key]!r}"
        for key in ours
        if key in theirs and not same_value(key, ours[key], theirs[key])
    ]
    if differ:
        more = f", and {len(differ) - _MOST_KEYS} more" if len(differ) > _MOST_KEYS else ""
        text = "the runs also differ in " + "; ".join(differ[:_MOST_KEYS]) + more
        advice = "set these keys alike: a difference of AP may be due to them"
        yield warning("other keys", text, advice)


def _values(cfg: CfgNode) -> dict[str, Any]:
    keys = [key for group in _GROUPS for key in all_keys(cfg[group], f"{group}.")]
    found = {key: get_value(cfg, key) for key in keys if key not in _FREE}
    return {key: normalize(x) for key, x in found.items() if not isinstance(x, CfgNode)}


def _start(distilled: RunFolder, baseline: RunFolder) -> Iterator[Finding]:
    parts = [list(run.cfg.DISTILL.STUDENT.INHERIT) for run in (distilled, baseline)]
    if parts[0] != parts[1]:
        text = f"DISTILL.STUDENT.INHERIT is {parts[0]} and {parts[1]}: the students started apart"
        yield warning("start", text, f"train the baseline with DISTILL.STUDENT.INHERIT {parts[0]}")


def _length(distilled: RunFolder, baseline: RunFolder) -> Iterator[Finding]:
    for run in (distilled, baseline):
        if run.iterations < run.cfg.SOLVER.MAX_ITER:
            text = (
                f"{run.folder}: the last checkpoint is of iteration {run.iterations} of "
                f"{run.cfg.SOLVER.MAX_ITER}"
            )
            yield warning("not complete", text, "end the training with --resume, then compare")
