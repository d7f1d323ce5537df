# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checkpoints that are there whole or not at all, whatever ends the process."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from detectron2.utils.file_io import PathManager

from ..utils.errors import WeightsError

__all__ = ["AtomicPathManager", "remove_unfinished", "atomic_write"]

UNFINISHED = ".unfinished"

logger = logging.getLogger(__name__)


@contextmanager
def atomic_write(path: str, mode: str) -> Iterator[IO]:
    """Open a local file that takes its name only when it is complete and on the disk.

    Written beside its place, flushed to the disk, renamed: who reads ``path`` finds the old file
    or the new one, also after a kill or a power cut. What a failure leaves is removed.

    Args:
        path: of the file.
        mode: "w" or "wb".
    """
    unfinished = path + UNFINISHED
    try:
        with open(unfinished, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        with suppress(FileNotFoundError):
            os.remove(unfinished)
    _sync_folder(os.path.dirname(path) or ".")


def _sync_folder(folder: str) -> None:
    """Bring a renaming to the disk, where the system can open folders (not on Windows)."""
    with suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class AtomicPathManager:
    """Detectron2's PathManager for a ``Checkpointer.path_manager``: local files are written whole.

    ``Checkpointer.save`` writes the checkpoint and then ``last_checkpoint`` through it, so
    ``last_checkpoint`` never names a file that is not complete. Addresses of other systems
    ("s3://") are left to their handlers.
    """

    def __getattr__(self, name: str):
        return getattr(PathManager, name)

    @contextmanager
    def open(self, path: str, mode: str = "r", **kwargs) -> Iterator[IO]:
        """As PathManager.open.

        Raises:
            WeightsError: no space, no permission; says what to do.
        """
        if "w" not in mode or "://" in path:
            with PathManager.open(path, mode, **kwargs) as file:
                yield file
            return
        try:
            with atomic_write(path, mode) as file:
                yield file
        # PyTorch's writer turns the system's error into a RuntimeError of its own.
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"{path} could not be written: {error}. The checkpoint before it is as it was: "
                f"make space in {os.path.dirname(path)}, then continue with --resume."
            ) from error


def remove_unfinished(folder: str) -> None:
    """Delete what processes that were killed while they wrote checkpoints left in a folder."""
    for file in Path(folder).glob("*" + UNFINISHED):
        logger.info("Removing %s, which a killed process left unfinished", file)
        file.unlink()
