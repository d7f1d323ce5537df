# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The checkpoint of the best evaluation, and when a training no longer improves."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine.hooks import BestCheckpointer
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from ..utils.errors import ConfigError
from ..utils.text import did_you_mean, first_line
from .atomic_write import AtomicPathManager
from .fingerprint import ClassNames
from .run_checkpointer import save_step
from .safe_load import safe_load

__all__ = ["BestCheckpoint"]

NAME = "model_best"

logger = logging.getLogger(__name__)


class _StudentCheckpointer(DetectionCheckpointer):
    """Writes a student that is not resumed from: last_checkpoint keeps naming the run's own."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Leave last_checkpoint as it is."""


class BestCheckpoint(BestCheckpointer):
    """Writes model_best.pth after each evaluation that is better than all before it.

    The file holds the student alone ("model"), "classes", "iteration" and "best": the metric, its
    value and the iteration. A resumed run goes on from the best value of its checkpoint. Only the
    main process knows the value; the others learn from it what to do.

    It must come after Detectron2's EvalHook, and before what saves the step again.
    """

    def __init__(
        self,
        cfg: CfgNode,
        student: nn.Module,
        classes: Sequence[str],
        get_results: Callable[[], Mapping[str, Any]],
    ):
        """
        Args:
            cfg: TEST.BEST_METRIC, TEST.EVAL_PERIOD and TEST.STOP_AFTER are read.
            student: not wrapped in DistributedDataParallel.
            classes: names of the student's classes; empty if they are not known.
            get_results: gives the last evaluation's results, as ``DefaultTrainer.test`` returns
                them.
        """
        checkpointer = _StudentCheckpointer(student, cfg.OUTPUT_DIR, classes=ClassNames(classes))
        checkpointer.path_manager = AtomicPathManager()
        super().__init__(cfg.TEST.EVAL_PERIOD, checkpointer, cfg.TEST.BEST_METRIC, "max", NAME)
        self.metric, self._stop_after = cfg.TEST.BEST_METRIC, cfg.TEST.STOP_AFTER
        self._get_results = get_results

    def state_dict(self) -> dict[str, Any]:
        """The best evaluation so far; the value is None before the first finite one."""
        return {"metric": self.metric, "value": self.best_metric, "iteration": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the best evaluation of a checkpoint; that of another metric is dropped."""
        if state["metric"] == self.metric:
            self.best_metric, self.best_iter = state["value"], state["iteration"]
        else:
            logger.warning(
                "TEST.BEST_METRIC was %r, is %r: the best of the evaluations from here on counts",
                state["metric"],
                self.metric,
            )

    def before_train(self) -> None:
        """In a resumed run, compare what the checkpoint says with the file that is there."""
        if self.trainer.checkpointer.resumed and comm.is_main_process():
            self._adopt_file()

    def _adopt_file(self) -> None:
        """Take the best value from model_best.pth, unless that is of a later step.

        A run that is killed after an evaluation may have written it after its last checkpoint.
        """
        found = self._read_file()
        if found is not None and found["iteration"] >= self.trainer.start_iter:
            return  # the steps until then are repeated, and so is the file
        value, step = (found["value"], found["iteration"]) if found else (None, None)
        if step != self.best_iter and self.best_metric is not None:
            logger.warning(
                "The best %s was %.4f, of iteration %d, but there is no %s.pth of it in %s: the "
                "best of the evaluations %s counts",
                self.metric,
                self.best_metric,
                self.best_iter,
                NAME,
                self._checkpointer.save_dir,
                "from here on" if found is None else f"from iteration {step} on",
            )
        self.best_metric, self.best_iter = value, step

    def _read_file(self) -> dict[str, Any] | None:
        """The record in model_best.pth; None if it is absent or of another metric."""
        path = os.path.join(self._checkpointer.save_dir, f"{NAME}.pth")
        if not PathManager.isfile(path):
            return None
        try:
            record = safe_load(path)["best"]
        except Exception as error:  # of torch, pickle, zipfile or the system
            logger.warning("%s cannot be read as a checkpoint: %s", path, first_line(error))
            return None
        return record if record["metric"] == self.metric else None

    def after_step(self) -> None:
        """Compare if the step was evaluated; end the training if it no longer improves.

        Raises:
            ConfigError: TEST.BEST_METRIC is none of the metrics.
        """
        done = self.trainer.iter + 1
        if self._period <= 0 or done % self._period or done == self.trainer.max_iter:
            return
        self._check()
        if self.is_over(done):
            self.trainer.stop_early()

    def after_train(self) -> None:
        """Compare the last evaluation, if the training is complete; raises as ``after_step``."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._check()

    def is_over(self, done: int) -> bool:
        """Have TEST.STOP_AFTER evaluations in a row not been better than the best?

        To be called by all processes at once; the answer is the same in all.

        Args:
            done: steps so far, all evaluations of which are done.
        """
        best = 0 if self.best_iter is None else self.best_iter + 1
        since = done // self._period - best // self._period if self._period > 0 else 0
        # Only the main process knows when the best one was.
        over = comm.all_gather(bool(self._stop_after) and since >= self._stop_after)[0]
        if over and comm.is_main_process():
            logger.info(
                "%s has not improved in %d evaluations (TEST.STOP_AFTER): the training ends after "
                "iteration %d",
                self.metric,
                since,
                done - 1,
            )
        return over

    def _check(self) -> None:
        problem = ""
        if comm.is_main_process():
            metrics = flatten_results_dict(self._get_results())
            if self.metric in metrics:
                self._compare_with_best(float(metrics[self.metric]))
            else:
                problem = _describe_unknown(self.metric, sorted(metrics))
        problem = comm.all_gather(problem)[0]
        if not problem:
            return
        step = self.trainer.iter
        if self.trainer.start_iter <= step < self.trainer.max_iter:
            # The state of all processes was gathered before the evaluation.
            save_step(self.trainer.checkpointer, step)
            problem += f" The training stops after iteration {step}; --resume continues it."
            # The first process to end may end the others, and the main one is still writing.
            comm.synchronize()
        raise ConfigError(problem)

    def _compare_with_best(self, value: float) -> None:
        # After the training Detectron2 counts one step more than it has made.
        step = min(self.trainer.iter, self.trainer.max_iter - 1)
        before = self.best_metric
        better = before is None or self._compare(value, before)
        if better and self._update_best(value, step):
            self._checkpointer.save(NAME, iteration=step, best=self.state_dict())
            then = "" if before is None else f" (before: {before:.4f})"
            logger.info("Best %s: %.4f%s, written to %s.pth", self.metric, value, then, NAME)
        elif before is None:
            logger.info("%s is %s: no %s.pth is written", self.metric, value, NAME)
        else:
            best = f"{before:.4f} of iteration {self.best_iter}"
            logger.info("%s is %.4f, not better than %s", self.metric, value, best)


def _describe_unknown(metric: str, known: Sequence[str]) -> str:
    names = ", ".join(known) or "no metric at all"
    return (
        f"TEST.BEST_METRIC is {metric!r}, but the evaluation gives {names}: set it to one of "
        f"these.{did_you_mean(metric, known)}"
    )
