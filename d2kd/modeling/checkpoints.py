"""Checkpoint files: fetched, whole, and without code in them, before anything loads them."""

import os
import pickle
from typing import Any

import torch
from detectron2.utils.file_io import PathManager

__all__ = ["find_weights"]

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


class _ArraysOnly(pickle.Unpickler):
    """Reads what the model zoo's .pkl files hold, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it holds {module}.{name}, not only arrays: loading it could run code"
        )


def _check_readable(path: str) -> None:
    """Read a checkpoint as data; raises whatever is wrong with it."""
    if path.endswith(".pkl"):
        with open(path, "rb") as file:
            _ArraysOnly(file, encoding="latin1").load()
        return
    # Old releases of torch load any pickle unless told not to.
    torch.load(path, map_location="cpu", weights_only=True)


def find_weights(weights: str, key: str) -> str:
    """The local file of a checkpoint, downloaded if need be, which is safe to load.

    Args:
        weights: a path, URL or detectron2:// address.
        key: where it is configured, for the message.

    Raises:
        FileNotFoundError: it is not there, or cannot be fetched.
        ValueError: it is truncated, no checkpoint, or holds objects other than weights.
    """
    try:
        path = PathManager.get_local_path(weights)
    except Exception as error:
        raise FileNotFoundError(f"{key} {weights} cannot be fetched: {error}") from error
    # Detectron2 reads options behind a question mark.
    file = path.split("?")[0]
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"{key} {weights} is not there (seen from {os.getcwd()}): set it to the path, URL or "
            "detectron2:// address of a checkpoint"
        )
    try:
        _check_readable(file)
    except Exception as error:
        raise ValueError(
            f"{key} {weights} cannot be read as a checkpoint of weights alone: {error}"
        ) from error
    return path
