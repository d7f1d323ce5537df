# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checkpoint files: fetched, whole, and without code in them; and what of them a model takes."""

import logging
import os
import pickle
from typing import Any, NamedTuple
from urllib.error import HTTPError

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

__all__ = [
    "Loaded",
    "UnreachableError",
    "resolve_weights",
    "load_weights_strict",
    "load_weights",
    "safe_load",
]

logger = logging.getLogger(__name__)

# By detector: where its weights are configured, and the config that they must belong to.
_KEYS = {
    "student": ("MODEL.WEIGHTS", "--config-file"),
    "teacher": ("DISTILL.TEACHER.WEIGHTS", "DISTILL.TEACHER.CONFIG_FILE"),
}

# All that numpy arrays need, under numpy's names before and since 2.0.
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


class UnreachableError(FileNotFoundError):
    """Nobody answers where a checkpoint should be fetched: elsewhere it may be had."""


class Loaded(NamedTuple):
    """A model's tensors by what a checkpoint had for them; ``unexpected`` are the file's own."""

    matched: list[str]
    missing: list[str]
    wrong_shape: list[str]  # with both shapes
    unexpected: list[str]


class _ReportingCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that keeps what it could not match."""

    def _load_model(self, checkpoint):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


class _ArraysOnly(pickle.Unpickler):
    """Reads what the model zoo's .pkl files hold, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it holds {module}.{name}, not only arrays: loading it could run code"
        )


def safe_load(path: str) -> Any:
    """The content of a local checkpoint, of which nothing can run; raises whatever is wrong."""
    if path.endswith(".pkl"):
        with open(path, "rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    # Old releases of torch load any pickle unless told not to.
    return torch.load(path, map_location="cpu", weights_only=True)


def resolve_weights(weights: str, key: str) -> str:
    """The local file of a checkpoint, downloaded if need be, which is safe to load.

    Args:
        weights: a path, URL or detectron2:// address.
        key: where it is configured, for the message.

    Raises:
        FileNotFoundError: it is not there.
        UnreachableError: its server cannot be reached.
        ValueError: it is truncated, no checkpoint, or holds objects other than weights.
    """
    try:
        path = PathManager.get_local_path(weights)
    except Exception as error:
        # A server that answers has no such file.
        away = isinstance(error, OSError) and not isinstance(error, HTTPError)
        kind = UnreachableError if away else FileNotFoundError
        raise kind(f"{key} {weights} cannot be fetched: {error}") from error
    # Detectron2 reads options behind a question mark.
    file = path.split("?")[0]
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"{key} {weights} is not there (seen from {os.getcwd()}): set it to the path, URL or "
            "detectron2:// address of a checkpoint"
        )
    try:
        safe_load(file)
    except Exception as error:
        raise ValueError(
            f"{key} {weights} cannot be read as a checkpoint of weights alone: {error}"
        ) from error
    return path


def load_weights(model: nn.Module, path: str) -> Loaded:
    """Load a checkpoint into a model as Detectron2 does, which takes what fits, and say what did.

    Args:
        model: changed in place.
        path: from ``resolve_weights``.
    """
    checkpointer = _ReportingCheckpointer(model)
    checkpointer.load(path, checkpointables=[])
    found = checkpointer.incompatible
    shapes = {name: (file, ours) for name, file, ours in found.incorrect_shapes}
    # A tensor of another shape is taken out of the checkpoint and so also counts as missing.
    missing = [name for name in found.missing_keys if name not in shapes]
    lacking = {*missing, *shapes}
    return Loaded(
        matched=[name for name in model.state_dict() if name not in lacking],
        missing=missing,
        wrong_shape=[f"{name}: file {a}, model {b}" for name, (a, b) in shapes.items()],
        unexpected=list(found.unexpected_keys),
    )


def load_weights_strict(model: nn.Module, weights: str, path: str, whose: str) -> None:
    """Load every one of a detector's weights and log how many matched, or stop.

    Args:
        weights: as configured, for messages.
        path: the local file of ``resolve_weights``.
        whose: "student" or "teacher".

    Raises:
        ValueError: a weight is missing in the file, or has another shape there; says how many and
            which.
    """
    key, config = _KEYS[whose]
    try:
        loaded = load_weights(model, path)
    except Exception as error:
        raise ValueError(f"{key} {weights} cannot be read as a checkpoint: {error}") from error
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
        raise ValueError("\n".join([report, *details, end]))
