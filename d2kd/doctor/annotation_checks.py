# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checks of the annotations as they were written, before loading repaired anything."""

from collections import Counter
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from ..data.datasets.registered import suspicions_of
from ..data.datasets.remarks import KINDS, Remarks
from ..utils.text import first_few
from .finding import Finding, error, ok, warning

__all__ = ["check_annotations", "count_repairs"]


def count_repairs(remarks: Mapping[str, Remarks]) -> int:
    """How many boxes were swapped, clipped or dropped while the declared sets were loaded."""
    kinds = ("swapped", "clipped", "dropped")
    return sum(found.count(kind) for found in remarks.values() for kind in kinds)


def check_annotations(
    remarks: Mapping[str, Remarks], registered: Sequence[dict], cfg: CfgNode
) -> list[Finding]:
    """A row for each kind of remark on each declared set, and for registered training sets alike.

    Args:
        remarks: from register_custom_datasets.
        registered: dataset dicts of training sets that Python code registers.
        cfg: TEST.DETECTIONS_PER_IMAGE.
    """
    rows = [
        warning(kind.check, f"{name}: {text}", kind.advice)
        for name, found in remarks.items()
        for kind, text in found.described()
    ]
    rows += [*_suspicions(registered), *_repeated(registered), *_crowded(registered, cfg)]
    return rows or [ok("annotations", "nothing is suspicious, and nothing was repaired")]


def _suspicions(records: Sequence[dict]) -> list[Finding]:
    """What the boxes of registered sets look like, by the box mode that they state."""
    check, advice = KINDS["suspect"].check, KINDS["suspect"].advice
    return [
        (error if found.fatal else warning)(check, f"bbox_mode {mode.name}: {found.text}", advice)
        for mode, found in suspicions_of(records)
    ]


def _repeated(records: Sequence[dict]) -> list[Finding]:
    """Annotations that repeat another one of their image."""
    places = []
    for record in records:
        items = [
            (item["category_id"], *item["bbox"])
            for item in record["annotations"]
            if not item.get("iscrowd", 0)
        ]
        places += [record["file_name"]] * (len(items) - len(Counter(items)))
    if not places:
        return []
    kind = KINDS["repeated"]
    text = f"{len(places)} {kind.text}: {first_few(places)}"
    return [warning(kind.check, text, kind.advice)]


def _crowded(records: Sequence[dict], cfg: CfgNode) -> list[Finding]:
    """Images with more objects than are detected."""
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    counts = {
        record["file_name"]: sum(not item.get("iscrowd", 0) for item in record["annotations"])
        for record in records
    }
    places = [name for name, count in counts.items() if 0 < limit < count]
    if not places:
        return []
    kind = KINDS["crowded"]
    most = max(counts.values())
    text = f"{len(places)} {kind.text} ({most} objects at most): {first_few(places)}"
    return [warning(kind.check, text, kind.advice)]
