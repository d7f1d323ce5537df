# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The line that a training shows on a terminal, in place of a log line every 20 iterations."""

import datetime
import time
from collections.abc import Iterator

from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage

from ..modeling import split_losses
from ..utils.progress import Line, loss_terms

__all__ = ["ProgressLine"]

# Seconds between two looks of the line; more often nobody can read it.
PERIOD = 0.2
# Values are medians over so many iterations, as in Detectron2's log lines.
WINDOW = 20


class ProgressLine(HookBase):
    """Shows iteration, remaining time, losses, their ratio and the latest AP after each step.

    It reads what the trainer has logged, so that no step waits for a GPU. The most important stands
    first: what does not fit into the terminal is left out.
    """

    def __init__(self, metric: str = ""):
        """
        Args:
            metric: the one to show, as "bbox/AP"; "" is the box AP of the first test set.
        """
        self.metric = metric
        self._line = Line()
        self._last = 0.0

    def after_step(self) -> None:
        """Write the line over, if the last time is not too short ago."""
        now = time.perf_counter()
        if now - self._last >= PERIOD:
            self._last = now
            self._line.show(list(self._items(self.trainer.storage)))

    def after_train(self) -> None:
        """Leave the terminal to what comes after the training."""
        self._line.hide()

    def _items(self, storage: EventStorage) -> Iterator[str]:
        done, last = self.trainer.iter + 1, self.trainer.max_iter
        yield f"iter {done}/{last}"
        yield f"eta {self._remaining(storage, last - done)}"
        # Of a step that failed there is none.
        names = [name for name in storage.histories() if "loss" in name and "/" not in name]
        values = {name: storage.history(name).median(WINDOW) for name in names}
        if "total_loss" in values:
            yield f"loss {values.pop('total_loss'):.3f}"
        detection, distillation = split_losses(values)
        if distillation and sum(detection.values()) > 0:
            ratio = sum(distillation.values()) / sum(detection.values())
            yield f"distill/detection {ratio:.2f}"
        yield from self._result(storage)
        yield from loss_terms(values)

    def _remaining(self, storage: EventStorage, steps: int) -> str:
        """Detectron2 does not time the first three steps."""
        if "time" not in storage.histories():
            return "-"
        seconds = storage.history("time").median(1000) * steps
        return str(datetime.timedelta(seconds=int(seconds)))

    def _result(self, storage: EventStorage) -> Iterator[str]:
        found = {name: value for name, (value, _) in storage.latest().items()}
        boxes = [name for name in found if name.endswith("bbox/AP")]
        name = self.metric if self.metric in found else next(iter(boxes), "")
        if name:
            yield f"{name.rpartition('/')[2]} {found[name]:.1f}"
