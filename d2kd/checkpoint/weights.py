# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checkpoint files: how they are found, read without running code, and loaded into a model."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.error import HTTPError

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from ..utils.errors import D2kdError, WeightsError
from ..utils.text import first_line
from .fingerprint import recorded_classes
from .safe_load import safe_load
from .wrapping import describe_content, find_state_dict, strip_prefix

__all__ = [
    "Loaded",
    "UnreachableError",
    "UnwrappingCheckpointer",
    "resolve_weights",
    "load_weights_strict",
    "load_weights",
    "read_weights",
    "safe_load",
]

logger = logging.getLogger(__name__)

# Of each detector: the key of its weights, and where the config is named that they must belong to.
_KEYS = {
    "student": ("MODEL.WEIGHTS", "--config-file"),
    "teacher": ("DISTILL.TEACHER.WEIGHTS", "DISTILL.TEACHER.CONFIG_FILE"),
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
        contains: what the file holds, for messages.
        classes: names of the classes that the weights were trained on; empty where not recorded.
    """

    matched: list[str]
    missing: list[str]
    wrong_shape: list[str]
    unexpected: list[str]
    contains: str = ""
    classes: tuple[str, ...] = ()


class UnwrappingCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that finds weights under other names, and keeps what it matched.

    Detectron2 reads "model" or a bare state_dict. Other programs write "state_dict", or "module."
    before every name. What was matched it only logs; its private ``_load_model`` returns it.

    Attributes:
        loaded: how the last file fitted; None before the first.
    """

    loaded: Loaded | None = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read a file; "model" is then the one state_dict in it, under the model's own names.

        Raises:
            WeightsError: no state_dict is in it, or it is not clear which is meant.
        """
        content = (
            _read_pickle(filename) if filename.endswith(".pkl") else super()._load_file(filename)
        )
        if filename.endswith((".pkl", ".pyth")):  # of one program each, which Detectron2 knows
            self._contains = describe_content(content.get("model"))
            return content
        # Detectron2 takes what has no "model" for a bare state_dict.
        inside = content["model"] if set(content) <= {"model", "matching_heuristics"} else content
        where, state = find_state_dict(inside)
        self._contains = describe_content(inside)
        prefix, state = strip_prefix(state, self.model.state_dict())
        if where not in ("", "model") or prefix:
            logger.info("%s: the weights are those of %r", filename, f"{where}:{prefix}*")
        return {**content, "model": state}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        found = super()._load_model(checkpoint)
        shapes = {name: (file, ours) for name, file, ours in found.incorrect_shapes}
        # Detectron2 also counts a tensor of another shape as missing.
        missing = [name for name in found.missing_keys if name not in shapes]
        lacking = {*missing, *shapes}
        self.loaded = Loaded(
            matched=[name for name in self.model.state_dict() if name not in lacking],
            missing=missing,
            wrong_shape=[f"{name}: file {a}, model {b}" for name, (a, b) in shapes.items()],
            unexpected=list(found.unexpected_keys),
            contains=self._contains,
        )
        return found


def _read_pickle(path: str) -> dict[str, Any]:
    """The content of a model zoo's .pkl, as Detectron2 gives it, but unpickled safely."""
    content = safe_load(path)
    if not isinstance(content, dict):
        raise WeightsError(f"it holds {describe_content(content)}, not a dict of arrays")
    if "model" in content and "__author__" in content:
        return content
    # Detectron1's detectors have "blobs", its ImageNet networks have not.
    blobs = content.get("blobs", content)
    state = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return {"model": state, "__author__": "Caffe2", "matching_heuristics": True}


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
            f"{key} {weights} cannot be read as a checkpoint of weights alone: {first_line(error)}"
        ) from error
    return path


@contextmanager
def read_weights(key: str, weights: str) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is loaded into an error that names key and file.

    Raises:
        WeightsError: in place of any other exception.
    """
    try:
        yield
    except D2kdError as error:
        named = isinstance(error, WeightsError) and weights not in str(error)
        raise WeightsError(f"{key} {weights}: {error}") if named else error from error
    except Exception as error:  # of torch, pickle, numpy or fvcore
        raise WeightsError(
            f"{key} {weights} cannot be loaded into the detector: {first_line(error)}"
        ) from error


def load_weights(model: nn.Module, path: str) -> Loaded:
    """Load what fits of a checkpoint into a model, as Detectron2 does, and report what did.

    Args:
        model: changed in place.
        path: from ``resolve_weights``.
    """
    checkpointer = UnwrappingCheckpointer(model)
    extra = checkpointer.load(path, checkpointables=[])
    assert checkpointer.loaded is not None
    return checkpointer.loaded._replace(classes=recorded_classes(extra))


def load_weights_strict(model: nn.Module, weights: str, path: str, whose: str) -> Loaded:
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
    with read_weights(key, weights):
        loaded = load_weights(model, path)
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
        details.append(f"  the file holds {loaded.contains}")
        end = f"the {whose} is incomplete: {key} must belong to {config}"
        raise WeightsError("\n".join([report, *details, end]))
    return loaded
