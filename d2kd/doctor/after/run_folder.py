# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The output folder of a training: its config, its last checkpoint and what it logged."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from ...checkpoint.fingerprint import recorded_classes
from ...checkpoint.last_checkpoint import find_last
from ...checkpoint.weights import safe_load
from ...config.load import load_config
from ...utils.device import device_or_cpu
from ...utils.errors import ConfigError, WeightsError
from ...utils.text import first_line
from .training_log import TrainingLog, read_log

__all__ = ["RunFolder", "read_run"]

FINAL = "model_final.pth"


@dataclass(frozen=True)
class RunFolder:
    """A finished (or stopped) training, as its folder tells it.

    Attributes:
        folder: OUTPUT_DIR.
        cfg: of config.yaml, on a device that is there, with OUTPUT_DIR set to the folder.
        checkpoint: path of the last checkpoint.
        content: what it holds.
        log: of metrics.json, up to the checkpoint.
    """

    folder: str
    cfg: CfgNode
    checkpoint: str
    content: dict[str, Any]
    log: TrainingLog

    @property
    def distilled(self) -> bool:
        return self.cfg.DISTILL.ENABLED

    @property
    def name(self) -> str:
        """The folder's own name."""
        return os.path.basename(os.path.abspath(self.folder))

    @property
    def iterations(self) -> int:
        """Training steps that the checkpoint has behind it."""
        last = self.content.get("iteration")
        return int(last) + 1 if last is not None else self.cfg.SOLVER.MAX_ITER

    @property
    def classes(self) -> tuple[str, ...]:
        """Those that the checkpoint records; empty if none."""
        return recorded_classes(self.content)


def read_run(folder: str, options: Sequence[str] = ()) -> RunFolder:
    """Read a training's output folder; nothing is written.

    Args:
        folder: OUTPUT_DIR of a training.
        options: ``KEY VALUE ...`` that override its config.

    Raises:
        ConfigError: there is no such folder, or no config.yaml in it that can be read.
        WeightsError: it holds no checkpoint.
        ResumeError: last_checkpoint names a file that cannot be read.
    """
    path = os.path.join(folder, "config.yaml")
    if not os.path.isfile(path):
        raise ConfigError(
            f"--after {folder}: there is no {path} (seen from {os.getcwd()}): give the OUTPUT_DIR "
            "of a training"
        )
    cfg = load_config(path, options)
    cfg.OUTPUT_DIR = folder
    cfg.MODEL.DEVICE, _ = device_or_cpu(cfg.MODEL.DEVICE)
    # The folder of a cache may be gone; nothing is cached for one pass.
    cfg.DISTILL.TEACHER.CACHE, cfg.DISTILL.TEACHER.COMPILE = "", False
    cfg.freeze()
    checkpoint, content = _last_checkpoint(folder)
    last = content.get("iteration")
    return RunFolder(folder, cfg, checkpoint, content, read_log(folder, last))


def _last_checkpoint(folder: str) -> tuple[str, dict[str, Any]]:
    """Path and content; model_final.pth also where last_checkpoint was not copied with it."""
    last = find_last(folder)
    if last is not None:
        return last.path, _with_weights(last.path, last.content)
    path = os.path.join(folder, FINAL)
    if not os.path.isfile(path):
        raise WeightsError(
            f"--after {folder}: there is no checkpoint, neither last_checkpoint nor {FINAL}: the "
            "training ended before it wrote one (SOLVER.CHECKPOINT_PERIOD), or it was removed"
        )
    try:
        return path, _with_weights(path, safe_load(path))
    except WeightsError:
        raise
    except Exception as error:  # of torch, pickle, zipfile or the system
        raise WeightsError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error


def _with_weights(path: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise WeightsError(
            f'{path} holds no "model": give the OUTPUT_DIR of a training by train_net.py'
        )
    return content
