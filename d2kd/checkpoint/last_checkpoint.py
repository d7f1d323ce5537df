# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The checkpoint that a run is resumed from, checked to be readable and the same for all."""

import os
import socket
from typing import Any, NamedTuple

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..utils.errors import ResumeError
from .weights import safe_load

__all__ = ["LastCheckpoint", "find_last"]


class LastCheckpoint(NamedTuple):
    """The last checkpoint of a run, read.

    Attributes:
        path: of the file.
        content: all that was saved, on the CPU.
    """

    path: str
    content: dict[str, Any]

    def describe(self) -> str:
        """File name and iteration, for messages."""
        return f"{os.path.basename(self.path)}, iteration {self.content.get('iteration')}"


def find_last(folder: str) -> LastCheckpoint | None:
    """Read the checkpoint that ``last_checkpoint`` names; None if there is none.

    To be called by all processes at once.

    Args:
        folder: OUTPUT_DIR; several machines may each have their own.

    Raises:
        ResumeError: a process cannot read it, or two processes find different ones. Every process
            raises it, so that none waits for another.
    """
    problem = None
    try:
        last = _read_last(folder)
        found = last.describe() if last else "no checkpoint"
    except ResumeError as error:
        last, problem, found = None, error, str(error)
    place = f"{socket.gethostname()}:{os.path.abspath(folder)}"
    everyone = comm.all_gather((place, found))
    if len({found for _, found in everyone}) > 1:
        raise ResumeError(_disagreement(everyone))
    if problem:
        raise problem
    return last


def _disagreement(everyone: list[tuple]) -> str:
    lines = [f"  rank {i}, {place}: {found}" for i, (place, found) in enumerate(everyone)]
    return "\n".join(
        [
            "the processes would resume from different checkpoints:",
            *lines,
            "Set OUTPUT_DIR to a folder that all machines share, or copy last_checkpoint and the "
            "file it names from the first machine to the others.",
        ]
    )


def _read_last(folder: str) -> LastCheckpoint | None:
    pointer = os.path.join(folder, "last_checkpoint")
    if not PathManager.exists(pointer):
        return None
    with PathManager.open(pointer) as file:
        name = file.read().strip()
    if not name:
        raise ResumeError(f"{pointer} is empty. {_advise(folder, name)}")
    path = os.path.join(folder, name)
    if not PathManager.isfile(path):
        raise ResumeError(f"{pointer} names {name}, which is not there. {_advise(folder, name)}")
    try:
        content = safe_load(path)
    except Exception as error:  # of torch, pickle, zipfile or the system
        raise ResumeError(
            f"{path} cannot be read as a checkpoint: {error}. {_advise(folder, name)}"
        ) from error
    return LastCheckpoint(path, content)


def _advise(folder: str, unusable: str) -> str:
    names = sorted(x for x in PathManager.ls(folder) if x.endswith(".pth") and x != unusable)
    others = [name for name in names if name.startswith("model_")]
    write = f"Write the name of another checkpoint into last_checkpoint ({', '.join(others)}), or "
    return (write if others else "") + "delete last_checkpoint to start from the beginning."
