# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checkpoint files: how they are found, read without running code, and loaded into a model."""

import logging
import os
import pickle
from typing import Any, NamedTuple
from urllib.error import HTTPError

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from ..utils.errors import WeightsError

__all__ = [
    "Loaded",
    "UnreachableError",
    "resolve_weights",
    "load_weights_strict",
    "load_weights",
    "safe_load",
]

logger = logging.getLogger(__name__)

# Of each detector: the key of its weights, and where the config is named that they must belong to.
_KEYS = {
    "student": ("MODEL.WEIGHTS", "--config-file"),
    "teacher": ("DISTILL.TEACHER.WEIGHTS", "DISTILL.TEACHER.CONFIG_FILE"),
}

# The classes that numpy arrays are unpickled with, under numpy's names before and since 2.0.
_ARRAYS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"))
    ),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}


class UnreachableError(WeightsError):
    """The server of a checkpoint does not answer; from another machine it may."""


class Loaded(NamedTuple):
    """The names of tensors, by how a checkpoint fitted a model.

    Attributes:
        matched: loaded.
        missing: of the model, not in the file.
        wrong_shape: in the file with another shape; each name with both shapes.
        unexpected: of the file, not in the model.
    """

    matched: list[str]
    missing: list[str]
    wrong_shape: list[str]
    unexpected: list[str]


class _ReportingCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that keeps what it could not match.

    Detectron2 only logs that; its private ``_load_model`` returns it.
    """

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays, as in the model zoo's .pkl files, and refuses what could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return numpy's array types; refuse every other name."""
        if (module, name) in _ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it holds {module}.{name}, not only arrays: loading it could run code"
        )


def safe_load(path: str) -> Any:
    """Read a local checkpoint without running code from it.

    Raises:
        Exception: of torch, pickle, zipfile or the system, if it cannot be read.
    """
    if path.endswith(".pkl"):
        with open(path, "rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    # Old releases of torch load any pickle unless told not to.
    return torch.load(path, map_location="cpu", weights_only=True)


def resolve_weights(weights: str, key: str) -> str:
    """The local file of a checkpoint, downloaded if necessary and checked to be safe to load.

    Args:
        weights: a path, URL or detectron2:// address.
        key: the config key that holds it, for messages.

    Raises:
        UnreachableError: its server cannot be reached.
        WeightsError: it is absent, truncated, no checkpoint, or holds other objects than weights.
    """
    try:
        path = PathManager.get_local_path(weights)
    except Exception as error:
        # An HTTP error is an answer: the server has no such file.
        away = isinstance(error, OSError) and not isinstance(error, HTTPError)
        kind = UnreachableError if away else WeightsError
        raise kind(f"{key} {weights} cannot be fetched: {error}") from error
    # Detectron2 reads options behind a question mark.
    file = path.split("?")[0]
    if not os.path.isfile(file):
        raise WeightsError(
            f"{key} {weights} is not there (seen from {os.getcwd()}): set it to the path, URL or "
            "detectron2:// address of a checkpoint"
        )
    try:
        safe_load(file)
    except Exception as error:
        raise WeightsError(
            f"{key} {weights} cannot be read as a checkpoint of weights alone: {error}"
        ) from error
    return path


def load_weights(model: nn.Module, path: str) -> Loaded:
    """Load what fits of a checkpoint into a model, as Detectron2 does, and report what did.

    Args:
        model: changed in place.
        path: from ``resolve_weights``.
    """
    checkpointer = _ReportingCheckpointer(model)
    checkpointer.load(path, checkpointables=[])
    found = checkpointer.incompatible
    shapes = {name: (file, ours) for name, file, ours in found.incorrect_shapes}
    # Detectron2 also counts a tensor of another shape as missing.
    missing = [name for name in found.missing_keys if name not in shapes]
    lacking = {*missing, *shapes}
    return Loaded(
        matched=[name for name in model.state_dict() if name not in lacking],
        missing=missing,
        wrong_shape=[f"{name}: file {a}, model {b}" for name, (a, b) in shapes.items()],
        unexpected=list(found.unexpected_keys),
    )


def load_weights_strict(model: nn.Module, weights: str, path: str, whose: str) -> None:
    """Load all weights of a detector and log how many matched.

    Args:
        model: changed in place.
        weights: the address in the config, for messages.
        path: the local file, from ``resolve_weights``.
        whose: "student" or "teacher".

    Raises:
        WeightsError: a weight is missing in the file or has another shape there; says how many and
            which.
    """
    key, config = _KEYS[whose]
    try:
        loaded = load_weights(model, path)
    except Exception as error:
        raise WeightsError(f"{key} {weights} cannot be read as a checkpoint: {error}") from error
    lists = {
        "missing": loaded.missing,
        "wrong shape": loaded.wrong_shape,
        "unexpected": loaded.unexpected,
    }
    report = f"{whose} weights {weights}: {len(loaded.matched)} matched" + "".join(
        f", {len(names)} {what}" for what, names in lists.items()
    )
    logger.info(report)
    if loaded.missing or loaded.wrong_shape:
        details = [f"  {what}: {name}" for what, names in lists.items() for name in names[:10]]
        end = f"the {whose} is incomplete: {key} must belong to {config}"
        raise WeightsError("\n".join([report, *details, end]))
