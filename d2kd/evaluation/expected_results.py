# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""TEST.EXPECTED_RESULTS, for one test set or several.

An entry is [task, metric, value, tolerance], as in Detectron2, and holds for every test set; or
[set, task, metric, value, tolerance], and holds for that set alone.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from ..utils.errors import ConfigError, D2kdError
from ..utils.numbers import is_number

__all__ = ["UnexpectedResultsError", "check_expected_results", "verify_expected_results"]

KEY = "TEST.EXPECTED_RESULTS"

logger = logging.getLogger(__name__)


class UnexpectedResultsError(D2kdError):
    """An evaluation gave other results than the config says."""


def check_expected_results(cfg: CfgNode) -> None:
    """Every entry is well formed, and there is a set that it speaks of.

    Raises:
        ConfigError: names the entry and what it may be.
    """
    sets, entries = list(cfg.DATASETS.TEST), cfg.TEST.EXPECTED_RESULTS
    if len(entries) and not sets:
        raise ConfigError(f"{KEY} is {entries}, but DATASETS.TEST is empty: set one of them")
    for entry in entries:
        if not _is_entry(entry):
            raise ConfigError(
                f"{KEY} has the entry {entry!r}: write [task, metric, value, tolerance], or "
                "[set, task, metric, value, tolerance] for one set of several"
            )
        if len(entry) == 5 and entry[0] not in sets:
            raise ConfigError(f"{KEY} names the set {entry[0]!r}; DATASETS.TEST is {sets}")


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, (list, tuple)) or len(entry) not in (4, 5):
        return False
    return all(isinstance(x, str) for x in entry[:-2]) and all(map(is_number, entry[-2:]))


def verify_expected_results(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """Compare what the evaluation gave with TEST.EXPECTED_RESULTS.

    Args:
        cfg: DATASETS.TEST and TEST.EXPECTED_RESULTS are read.
        results: task -> metric -> value of one test set; by the set's name of several.

    Raises:
        UnexpectedResultsError: every result that is absent, not finite or out of its tolerance.
    """
    sets = list(cfg.DATASETS.TEST)
    by_set = {sets[0]: results} if len(sets) == 1 else results
    wrong = [line for entry in cfg.TEST.EXPECTED_RESULTS for line in _differences(entry, by_set)]
    if wrong:
        raise UnexpectedResultsError("\n".join([f"not what {KEY} says:", *wrong]))
    if len(cfg.TEST.EXPECTED_RESULTS):
        logger.info("The results are those of %s", KEY)


def _differences(entry: Sequence, by_set: Mapping[str, Mapping]) -> Iterator[str]:
    *name, task, metric, expected, tolerance = entry
    for one in name or by_set:
        found = by_set.get(one, {}).get(task, {}).get(metric)
        if found is None or not math.isfinite(found) or abs(found - expected) > tolerance:
            yield f"  {one}: {task}/{metric} is {found}, expected {expected} +- {tolerance}"
