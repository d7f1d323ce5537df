# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""One entry of a cache folder: a safetensors file whose header says what it holds.

The file is written by these few lines and not by the library, so that the checksum can stand in
the header, and is read without a copy. Any reader of the safetensors format can open it.
"""

import json
import os
import zlib
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

__all__ = ["BadEntryError", "entry_pattern", "entry_path", "read_ahead", "read_entry"]
__all__ += ["write_entry"]

_SUFFIX = ".safetensors"
# Of files that are being written; nobody reads them.
UNFINISHED = ".unfinished"
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


class BadEntryError(Exception):
    """A file is not the entry that it should be: damaged, or made by another teacher."""


def entry_path(folder: str, part: str, digest: str) -> str:
    """The file of an entry in one teacher's folder."""
    return os.path.join(folder, part, digest[:2], digest + _SUFFIX)


def entry_pattern(folder: str, digest: str) -> str:
    """A pattern of the files of one image, of all teachers and parts in a cache folder."""
    return os.path.join(folder, "*", "*", digest[:2], digest + _SUFFIX)


def read_ahead(path: str) -> None:
    """Ask the system to read a file into memory, without waiting for it."""
    with suppress(OSError, AttributeError):  # it may be gone; not every system can
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)


def write_entry(path: str, maps: dict[str, Tensor], about: dict[str, str]) -> int:
    """Write an entry beside its place and rename it: it is there completely or not at all.

    It is not flushed to the disk: what a power cut leaves has another checksum.

    Args:
        path: its folder is made where there is none.
        maps: level -> map, contiguous, on the CPU.
        about: what a reader will expect.

    Returns:
        the bytes of the file.
    """
    arrays = {name: x.view(-1).view(torch.uint8).numpy() for name, x in maps.items()}
    header: dict[str, Any] = {}
    crc = end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        crc = zlib.crc32(array.data, crc)
        shape, code = list(maps[name].shape), _CODES[maps[name].dtype]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    header["__metadata__"] = {**about, "crc32": str(crc)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unfinished = f"{path}.{os.getpid()}{UNFINISHED}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(unfinished, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for array in arrays.values():
                file.write(array.data)
        os.replace(unfinished, path)
    finally:
        with suppress(FileNotFoundError):
            os.remove(unfinished)
    return 8 + len(text) + end


def read_entry(path: str, about: dict[str, str], verify: bool) -> dict[str, Tensor]:
    """The maps of an entry, which share the memory of one read.

    Args:
        about: what ``write_entry`` was given.
        verify: compare the checksum.

    Raises:
        FileNotFoundError: there is no such entry.
        BadEntryError: the file is damaged, or holds something else.
    """
    with open(path, "rb") as file:
        content = bytearray(os.fstat(file.fileno()).st_size)
        file.readinto(content)
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        found = header.pop("__metadata__")
        maps = {name: _tensor(content, start, **value) for name, value in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise BadEntryError(f"{path} is damaged ({error})") from error
    crc = found.pop("crc32", "")
    if found != about:
        other = next((key for key in about if found.get(key) != about[key]), "header")
        raise BadEntryError(f"{path} is of another {other}")
    if verify and str(zlib.crc32(memoryview(content)[start:])) != crc:
        raise BadEntryError(f"{path} is damaged (checksum)")
    return maps


def _tensor(
    content: bytearray, start: int, dtype: str, shape: list[int], data_offsets: list[int]
) -> Tensor:
    begin, end = data_offsets
    kind = _DTYPES[dtype]
    count = (end - begin) // (4 if kind is torch.float32 else 2)
    return torch.frombuffer(content, dtype=kind, offset=start + begin, count=count).view(shape)
