# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a run was trained with, saved in its checkpoints and compared when it is resumed."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..config import get_value
from ..config.load import all_keys
from ..config.spelling import normalize, same_value
from ..utils.errors import ResumeError

__all__ = [
    "ClassNames",
    "ConfigFingerprint",
    "TeacherFingerprint",
    "describe_changes",
    "fingerprint_tensors",
    "recorded_classes",
]

# The groups of keys that decide what is learned, and from which images.
_GROUPS = ("DISTILL", "INPUT", "MODEL", "SOLVER")
# Keys that may change between the parts of a run: where it is computed, how often it is saved, how
# long it is. The teacher's weights are compared by content, the images of a step by their number.
_MAY_CHANGE = (
    "DISTILL.TEACHER.CACHE_GIB",
    "DISTILL.TEACHER.WEIGHTS",
    "MODEL.ALLOW_UNMATCHED_WEIGHTS",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
)

logger = logging.getLogger(__name__)


class ConfigFingerprint:
    """The values of a config; logs one warning if the run was started with other values."""

    def __init__(self, cfg: CfgNode):
        self.values = {key: normalize(get_value(cfg, key)) for key in _recorded_keys(cfg)}

    def state_dict(self) -> dict[str, Any]:
        """The recorded keys and their values."""
        return dict(self.values)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with a checkpoint; nothing is loaded."""
        changes = describe_changes(state, self.values)
        if changes:
            logger.warning(
                "The run is resumed with other keys than it was started with:\n%s",
                "\n".join(changes),
            )


class TeacherFingerprint:
    """The teacher's weights, by content; refuses a run that was started with another teacher."""

    def __init__(self, weights: str, sha256: str):
        """
        Args:
            weights: the address of the teacher's checkpoint, for messages.
            sha256: of the file.
        """
        self.weights = weights
        self.sha256 = sha256

    def state_dict(self) -> dict[str, str]:
        """The address and hash of the teacher's weights."""
        return {"weights": self.weights, "sha256": self.sha256}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Compare with a checkpoint; nothing is loaded.

        Raises:
            ResumeError: the checkpoint's teacher has other weights.
        """
        if state["sha256"] != self.sha256:
            raise ResumeError(
                f"this run was started with the teacher {state['weights']} (sha256 "
                f"{state['sha256'][:12]}) and is resumed with {self.weights} ({self.sha256[:12]}): "
                "set DISTILL.TEACHER.WEIGHTS back, or choose another OUTPUT_DIR"
            )


def fingerprint_tensors(model: nn.Module) -> dict[str, str]:
    """The arguments of ``TeacherFingerprint`` for a teacher whose file is not known."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return {"weights": type(model).__name__, "sha256": digest.hexdigest()}


class ClassNames:
    """The names of a detector's classes; refuses to resume a run whose classes meant others."""

    def __init__(self, names: Sequence[str]):
        """
        Args:
            names: in the order of the class indices; empty where the data sets have none.
        """
        self.names = tuple(names)

    def state_dict(self) -> dict[str, list[str]]:
        return {"names": list(self.names)}

    def load_state_dict(self, state: dict[str, list[str]]) -> None:
        """Compare with a checkpoint; nothing is loaded.

        Raises:
            ResumeError: the checkpoint's classes are others, or in another order.
        """
        before = recorded_classes({"classes": state})
        if before and self.names and before != self.names:
            raise ResumeError(
                f"this run was started with the classes {list(before)} and is resumed with "
                f"{list(self.names)}: set DATASETS.TRAIN or the sets' CLASSES back, or choose "
                "another OUTPUT_DIR"
            )


def recorded_classes(content: dict[str, Any]) -> tuple[str, ...]:
    """The class names that a checkpoint of d2kd holds; empty for others."""
    record = content.get("classes")
    names = record.get("names") if isinstance(record, dict) else None
    if not isinstance(names, (list, tuple)) or not all(isinstance(x, str) for x in names):
        return ()
    return tuple(names)


def describe_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each key whose value differs; keys that only one side has are left out."""
    return [
        f"  {key} was {old[key]!r}, is {new[key]!r}"
        for key in sorted(set(old) & set(new))
        if not same_value(key, old[key], new[key])
    ]


def _recorded_keys(cfg: CfgNode) -> Iterator[str]:
    yield "DATASETS.TRAIN"
    for name in _GROUPS:
        for key in all_keys(cfg[name], f"{name}."):
            if key not in _MAY_CHANGE and not isinstance(get_value(cfg, key), CfgNode):
                yield key
