# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The output folder, made and tried before anything is trained."""

import logging
import os
import tempfile

from ..utils.errors import ConfigError

__all__ = ["prepare_output", "warn_if_used"]

logger = logging.getLogger(__name__)


def prepare_output(folder: str) -> None:
    """Make OUTPUT_DIR if need be, and write a file into it.

    Raises:
        ConfigError: with what the operating system says: no permission, no space, no folder.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".d2kd_") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_DIR {folder} cannot be written: {error}. Set it to a folder that can, with "
            "space for the checkpoints."
        ) from error


def warn_if_used(folder: str) -> None:
    """Before a fresh start: Detectron2 overwrites another run's checkpoints without a word."""
    left = [name for name in ("model_final.pth", "last_checkpoint") if _is_in(folder, name)]
    if left:
        logger.warning(
            "OUTPUT_DIR %s holds another run (%s), whose checkpoints this one overwrites and whose "
            "metrics.json it goes on writing: add --resume to continue that run, or set another "
            "OUTPUT_DIR to keep it",
            folder,
            ", ".join(left),
        )


def _is_in(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))
