# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""With which keys a run was trained so far, so that what is resumed otherwise is not a surprise."""

import logging
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode

from ..config import get_value
from ..config.load import all_keys
from ..config.spelling import normalize, same_value

__all__ = ["ConfigFingerprint", "describe_changes"]

# Groups that decide what is learned from which images.
_GROUPS = ("DISTILL", "INPUT", "MODEL", "SOLVER")
# Where a run is computed, how often it is saved and how long it is, it may be resumed with; the
# teacher's weights are known by their content, the images of a step by their number.
_FREE = (
    "DISTILL.TEACHER.WEIGHTS",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
)

logger = logging.getLogger(__name__)


class ConfigFingerprint:
    """A checkpointable of a config's values that warns, once, if resumed with others."""

    def __init__(self, cfg: CfgNode):
        self._values = {key: normalize(get_value(cfg, key)) for key in _recorded(cfg)}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._values)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        changes = describe_changes(state, self.state_dict())
        if changes:
            logger.warning(
                "The run goes on with other keys than it was started with:\n%s", "\n".join(changes)
            )


def describe_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line for each key whose value is not what it was; keys that only one knows are left out."""
    return [
        f"  {key} was {old[key]!r}, is {new[key]!r}"
        for key in sorted(set(old) & set(new))
        if not same_value(key, old[key], new[key])
    ]


def _recorded(cfg: CfgNode) -> Iterator[str]:
    yield "DATASETS.TRAIN"
    for name in _GROUPS:
        for key in all_keys(cfg[name], f"{name}."):
            if key not in _FREE and not isinstance(get_value(cfg, key), CfgNode):
                yield key
