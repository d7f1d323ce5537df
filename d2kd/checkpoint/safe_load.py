# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Reads checkpoint files without running code from them, in memory of the order of the file."""

import codecs
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

__all__ = ["safe_load"]

_TEXT_CODECS = {"latin1", "latin-1", "ascii", "utf-8", "utf8"}
_KEYS = (str, bytes, int, float, bool, type(None))
# Opcodes of no file of weights: sets, buffers of a stated size, objects and extensions.
_REFUSED = b"\x96\x97\x98\x8f\x90\x91\x81\x92\x82\x83\x84PQio"


def safe_load(path: str) -> Any:
    """Read a local checkpoint without running code from it.

    Raises:
        Exception: of torch, pickle, zipfile or the system, if it cannot be read.
    """
    if path.endswith(".pkl"):
        with open(path, "rb") as file:
            return _ArraysOnly(io.BytesIO(file.read()), encoding="latin1").load()
    _check_sizes(path)
    # Old releases of torch load any pickle unless told not to.
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_sizes(path: str) -> None:
    """No part of an archive is larger than the file: torch.save does not compress."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        sizes = [entry.file_size for entry in archive.infolist()]
    if max(sizes, default=0) > os.path.getsize(path):
        raise pickle.UnpicklingError("a part of the archive is larger than the file")


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """The empty array that pickle then fills."""
    if kind is not _ndarray or tuple(shape) != (0,):
        raise pickle.UnpicklingError("it holds an array that is not written as numpy writes it")
    return np.ndarray((0,), "b")


def _ndarray(*_: Any) -> None:
    raise pickle.UnpicklingError("it makes an array of a size that is not its content's")


def _scalar(dtype: np.dtype, content: Any) -> Any:
    return np.frombuffer(_encode(content, "latin1"), dtype)[0]


def _frombuffer(buffer: bytes, dtype: np.dtype, shape: Any, order: Any = "C") -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _encode(text: Any, encoding: str = "latin1") -> bytes:
    if encoding not in _TEXT_CODECS:
        raise pickle.UnpicklingError(f"it uses the encoding {encoding!r:.40}")
    return text if isinstance(text, bytes) else codecs.encode(text, encoding)


def _ordered(items: Any = ()) -> OrderedDict:
    result: OrderedDict = OrderedDict()
    for key, value in items:
        result[_check_key(key)] = value
    return result


def _check_key(key: Any) -> Any:
    """Keys are plain: a key of many tuples within tuples takes for ever to hash."""
    if not isinstance(key, _KEYS):
        raise pickle.UnpicklingError(f"it has a {type(key).__name__} for a name")
    return key


def _dtype(code: Any, align: Any = False, copy: Any = False) -> np.dtype:
    if not isinstance(code, str) or len(code) > 8:
        raise pickle.UnpicklingError(f"it has an array of {type(code).__name__}")
    return np.dtype(code)


# What arrays are unpickled with, under numpy's names before and since 2.0.
_MADE_BY = {
    ("collections", "OrderedDict"): _ordered,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


# mypy knows only the unpickler in C.
_PythonUnpickler: Any = pickle._Unpickler


class _ArraysOnly(_PythonUnpickler):
    """Unpickles arrays, as in the model zoo's .pkl files, and refuses what could run code.

    It is the unpickler in Python: the one in C allocates what an index in the file asks for.
    """

    dispatch = {code: f for code, f in _PythonUnpickler.dispatch.items() if code not in _REFUSED}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _MADE_BY:
            return _MADE_BY[module, name]
        raise pickle.UnpicklingError(
            f"it holds {module[:60]}.{name[:60]}, not only arrays: loading it could run code"
        )

    def load_setitem(self) -> None:
        _check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_setitems()

    def load_dict(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_dict()

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
