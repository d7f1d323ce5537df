# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""OUTPUT_DIR: created and checked before training."""

import logging
import os
import tempfile

from ..utils.errors import ConfigError

__all__ = ["prepare_output", "warn_if_used"]

logger = logging.getLogger(__name__)


def prepare_output(folder: str) -> None:
    """Create OUTPUT_DIR if it does not exist and check that files can be written into it.

    Raises:
        ConfigError: it cannot be written; with the operating system's reason.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".d2kd_") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_DIR {folder} cannot be written: {error}. Set it to a folder that can be "
            "written and has space for the checkpoints."
        ) from error


def warn_if_used(folder: str) -> None:
    """Warn before a new run overwrites the checkpoints of another; Detectron2 does not."""
    names = ("model_final.pth", "model_best.pth", "last_checkpoint")
    left = [name for name in names if _is_in(folder, name)]
    if left:
        logger.warning(
            "OUTPUT_DIR %s holds another run (%s). This run overwrites its checkpoints and appends "
            "to its metrics.json: add --resume to continue that run, or set another OUTPUT_DIR to "
            "keep it",
            folder,
            ", ".join(left),
        )


def _is_in(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))
