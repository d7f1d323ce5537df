# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The folder of data sets, as in Detectron2: ``$DETECTRON2_DATASETS`` or ``./datasets``."""

import os
import stat
from pathlib import Path

__all__ = ["dataset_root", "is_writable"]


def dataset_root() -> Path:
    """The folder that relative paths of data sets start from; read again at every call."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS") or "datasets"))


def is_writable(folder: Path) -> bool:
    """Whether files can be created in a folder, which is made if it is absent.

    A folder without any write permission is respected as read-only even for root, whom the
    operating system would let through.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError:
        return False
    write_bits = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
    return bool(mode & write_bits) and os.access(folder, os.W_OK | os.X_OK)
