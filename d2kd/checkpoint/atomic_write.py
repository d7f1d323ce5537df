# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checkpoints that are complete or absent, however the process that writes them ends."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathManager

from ..utils.errors import WeightsError
from ..utils.files import UNFINISHED, atomic_write

__all__ = ["AtomicPathManager", "remove_unfinished"]

logger = logging.getLogger(__name__)


class AtomicPathManager:
    """Detectron2's PathManager whose local files are written by ``atomic_write``.

    It is meant for ``Checkpointer.path_manager``. ``Checkpointer.save`` writes the checkpoint and
    then ``last_checkpoint`` through it, so ``last_checkpoint`` never names an incomplete file.
    Addresses of other systems ("s3://") are left to their handlers.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(PathManager, name)

    @contextmanager
    def open(self, path: str, mode: str = "r", **kwargs: Any) -> Iterator[IO]:
        """Open a file as PathManager.open does.

        Raises:
            WeightsError: the file cannot be written (no space, no permission).
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
                f"{path} could not be written: {error}. The checkpoint before it is unchanged: "
                f"free space in {os.path.dirname(path)}, then continue with --resume."
            ) from error


def remove_unfinished(folder: str) -> None:
    """Delete incomplete checkpoints, which processes leave that are killed while writing."""
    for file in Path(folder).glob("*" + UNFINISHED):
        logger.info("Removing %s, which a killed process left incomplete", file)
        file.unlink()
