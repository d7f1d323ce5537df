# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Writers of metrics beside Detectron2's own: Weights & Biases and MLflow (LOG.WRITERS)."""

import importlib
import importlib.util
import json
import logging
import os
import re
import sys
from abc import abstractmethod
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventWriter, get_event_storage

from ..utils.errors import ConfigError, D2kdError
from ..utils.files import atomic_write
from ..utils.text import first_line

__all__ = ["RunWriterHook", "check_writers"]

# Median over so many iterations, as in Detectron2's own writers.
WINDOW = 20

logger = logging.getLogger(__name__)


class _RunWriter(EventWriter):
    """Sends what is new since the last time to a run.

    A resumed training goes on with the run whose id is in OUTPUT_DIR.
    """

    name = ""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: is sent along.
        """
        self.cfg = cfg
        self._package = importlib.import_module(self.name)
        self._run: Any = None
        self._last_write = -1

    def start(self, resumed: bool) -> None:
        """Begin the run, or go on with the one of before.

        Args:
            resumed: whether the training goes on from a checkpoint.

        Raises:
            D2kdError: with what the package says.
        """
        try:
            self._run = self._begin(resumed)
        except Exception as error:  # of the package, its server or the system
            raise D2kdError(
                f"LOG.WRITERS has {self.name!r}, which cannot begin a run: "
                f"{first_line(error, 900)} Correct what it says, or take {self.name!r} out of "
                "LOG.WRITERS."
            ) from error

    def write(self) -> None:
        """Send the scalars that are newer than the last time, each under its own iteration.

        A training does not end because a server is away: what fails is tried again the next time.
        """
        if self._run is None:
            return
        try:
            self._send_new()
        except Exception as error:  # of the package, its server or the system
            logger.warning("%s (LOG.WRITERS) got no metrics: %s", self.name, first_line(error))

    def _send_new(self) -> None:
        by_step: dict[int, dict[str, float]] = {}
        latest = get_event_storage().latest_with_smoothing_hint(WINDOW)
        for key, (value, step) in latest.items():
            if step > self._last_write:
                by_step.setdefault(step, {})[key] = value
        for step in sorted(by_step):
            self.send(by_step[step], step)
            self._last_write = step

    def close(self) -> None:
        """Let the run end."""
        if self._run is not None:
            self.end()
            self._run = None

    def _begin(self, resumed: bool) -> Any:
        path = os.path.join(self.cfg.OUTPUT_DIR, f"{self.name}_run.txt")
        run_id = None
        if resumed and os.path.isfile(path):
            with open(path) as file:
                run_id = file.read().strip()
        run = self.begin(run_id)
        with atomic_write(path, "w") as file:
            file.write(f"{self.id_of(run)}\n")
        return run

    @abstractmethod
    def begin(self, run_id: str | None) -> Any:
        """Begin a run, or go on with that of an id."""

    @abstractmethod
    def id_of(self, run: Any) -> str:
        """The id of a run."""

    @abstractmethod
    def send(self, scalars: dict[str, float], step: int) -> None:
        """Send the scalars of an iteration."""

    @abstractmethod
    def end(self) -> None:
        """Send what is left."""


class WandbWriter(_RunWriter):
    """Weights & Biases. Its environment variables count: WANDB_PROJECT, WANDB_MODE, ..."""

    name = "wandb"

    def begin(self, run_id: str | None) -> Any:
        return self._package.init(
            id=run_id,
            resume="allow" if run_id else None,
            name=os.path.basename(os.path.abspath(self.cfg.OUTPUT_DIR)),
            dir=self.cfg.OUTPUT_DIR,
            config=json.loads(json.dumps(self.cfg, default=str)),
        )

    def id_of(self, run: Any) -> str:
        return run.id

    def send(self, scalars: dict[str, float], step: int) -> None:
        self._run.log(scalars, step=step)

    def end(self) -> None:
        self._run.finish()


class MlflowWriter(_RunWriter):
    """MLflow. Its environment variables count: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ..."""

    name = "mlflow"

    def begin(self, run_id: str | None) -> Any:
        name = os.path.basename(os.path.abspath(self.cfg.OUTPUT_DIR))
        run = self._package.start_run(run_id=run_id, run_name=None if run_id else name)
        self._package.log_text(self.cfg.dump(), "config.yaml")
        return run

    def id_of(self, run: Any) -> str:
        return run.info.run_id

    def send(self, scalars: dict[str, float], step: int) -> None:
        # Names of classes may hold what MLflow allows in no name.
        allowed = {re.sub(r"[^\w\-. /]", "_", key): value for key, value in scalars.items()}
        self._package.log_metrics(allowed, step=step)

    def end(self) -> None:
        self._package.end_run()


_WRITERS = {writer.name: writer for writer in (WandbWriter, MlflowWriter)}


def check_writers(cfg: CfgNode) -> None:
    """Are the packages of LOG.WRITERS installed?

    Raises:
        ConfigError: names those that are not.
    """
    for name in cfg.LOG.WRITERS:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"LOG.WRITERS has {name!r}, and the package {name} is not installed: run "
                f"pip install {name}, or take it out of LOG.WRITERS"
            )


class RunWriterHook(PeriodicWriter):
    """Detectron2's PeriodicWriter for the writers of LOG.WRITERS, which begin with the training."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: of the training.
        """
        self.writers = [_WRITERS[name](cfg) for name in cfg.LOG.WRITERS]
        super().__init__(self.writers)

    def before_train(self) -> None:
        """Begin the runs; raises as their ``start``."""
        for writer in self.writers:
            writer.start(self.trainer.checkpointer.resumed)
