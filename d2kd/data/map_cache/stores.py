# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The two places for a teacher's maps: this process's memory, or a folder that runs share.

Shape shorthand in this file:
    C, H, W: channels, height and width of a feature level
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Protocol

from torch import Tensor

from .entry_file import UNFINISHED, BadEntryError, entry_path, read_entry, write_entry

__all__ = ["FolderStore", "LevelMaps", "MapStore", "MemoryStore", "nbytes"]

LevelMaps = dict[str, Tensor]

logger = logging.getLogger(__name__)


class MapStore(Protocol):
    """Keeps what one teacher computed for single images, level name -> (C, H, W).

    A part is one kind of map, such as "features".

    Attributes:
        limit: bytes that it may hold.
    """

    limit: int

    def get(self, part: str, digest: str) -> LevelMaps | None:
        """What was put under these names; None if nothing was, or it cannot be used."""

    def put(self, part: str, digest: str, maps: LevelMaps) -> None:
        """Keep these maps, unless that exceeds the limit."""


def nbytes(maps: LevelMaps) -> int:
    """The bytes of an image's maps."""
    return sum(x.numel() * x.element_size() for x in maps.values())


class _Limit:
    """Counts bytes, and says once that there is no room for more."""

    def __init__(self, limit: int, used: int = 0):
        self.limit = limit
        self.used = used
        self._said = False

    def has_room(self, size: int) -> bool:
        if self.used + size <= self.limit:
            return True
        self.say(f"it holds {self.used / 2**30:.2f} of {self.limit / 2**30:.2f} GiB")
        return False

    def say(self, reason: str) -> None:
        if not self._said:
            logger.warning(
                "The teacher's cache takes nothing more (%s): other images are computed in every "
                "step. Raise DISTILL.TEACHER.CACHE_GIB or make room.",
                reason,
            )
        self._said = True


class MemoryStore:
    """Keeps maps in the memory of this process; each process of a run has its own."""

    def __init__(self, limit: int):
        """
        Args:
            limit: in bytes.
        """
        self.limit = limit
        self._room = _Limit(limit)
        self._maps: dict[tuple[str, str], LevelMaps] = {}

    def get(self, part: str, digest: str) -> LevelMaps | None:
        return self._maps.get((part, digest))

    def put(self, part: str, digest: str, maps: LevelMaps) -> None:
        size = nbytes(maps)
        if self._room.has_room(size):
            self._maps[part, digest] = maps
            self._room.used += size


class FolderStore:
    """Keeps maps as files, which several runs and processes may read and write at once.

    Every teacher has a folder of its own there, named by its signature. An entry that is damaged
    or not of this teacher counts as absent, with a warning at the 1st, 10th, 100th, ...
    """

    def __init__(self, root: str, signature: dict[str, str], limit: int):
        """
        Args:
            root: DISTILL.TEACHER.CACHE.
            signature: all that the maps depend on beside the image.
            limit: in bytes, of this teacher's folder.
        """
        text = json.dumps(signature, sort_keys=True)
        self._signature = text
        self.folder = os.path.join(root, hashlib.sha256(text.encode()).hexdigest()[:16])
        self.limit = limit
        self._room = _Limit(limit, used=_bytes_in(self.folder))
        self._verified: set[tuple[str, str]] = set()
        self.rejected = 0

    def get(self, part: str, digest: str) -> LevelMaps | None:
        path, name = entry_path(self.folder, part, digest), (part, digest)
        try:
            maps = read_entry(path, self._about(part, digest), verify=name not in self._verified)
        except FileNotFoundError:
            return None
        except (BadEntryError, OSError) as error:
            self._reject(error)
            return None
        self._verified.add(name)
        return maps

    def put(self, part: str, digest: str, maps: LevelMaps) -> None:
        if not self._room.has_room(nbytes(maps)):
            return
        path = entry_path(self.folder, part, digest)
        try:
            self._room.used += write_entry(path, maps, self._about(part, digest))
        except OSError as error:
            self._room.say(str(error))

    @property
    def used(self) -> int:
        """Bytes of this teacher's files, as far as this process knows."""
        return self._room.used

    def _about(self, part: str, digest: str) -> dict[str, str]:
        return {"teacher": self._signature, "part": part, "image": digest}

    def _reject(self, error: Exception) -> None:
        self.rejected += 1
        if str(self.rejected).strip("0") == "1":
            logger.warning(
                "Entries of the teacher's cache cannot be used and are computed again, %d so far "
                "in this process; the latest: %s",
                self.rejected,
                error,
            )


def _bytes_in(folder: str) -> int:
    files = (path for path in Path(folder).rglob("*") if path.suffix != UNFINISHED)
    total = 0
    for path in files:
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # another process has replaced it
            continue
    return total
