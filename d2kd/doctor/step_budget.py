# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How many training steps to try, and on how many images, within a time limit."""

import math
import time
from dataclasses import dataclass

__all__ = ["StepBudget"]

# Enough for a median, and for a gradient that is 0 in one batch to differ from 0 in another.
MOST = 4


@dataclass(frozen=True)
class StepBudget:
    """The numbers that the user asked for; None lets the remaining time decide.

    Attributes:
        steps: number of timed steps, after a first one that warms up; None for MOST, or fewer if
            the time runs out.
        images: number of images of each batch, 0 for all; None for all, or fewer if the time is
            short.
        until: value of ``time.perf_counter()`` at which the steps should have ended.
    """

    steps: int | None = None
    images: int | None = None
    until: float = math.inf

    @property
    def most(self) -> int:
        """The largest number of steps after the first one."""
        return MOST if self.steps is None else self.steps

    def first_images(self, batch: int) -> int:
        """Images for the first step: one if time is limited, for no step has been timed yet."""
        if self.images is None and self.until < math.inf:
            return 1
        return min(self.images or batch, batch)

    def later_images(self, batch: int, seconds: float) -> int:
        """Images for each later step.

        Args:
            batch: images of a whole batch.
            seconds: that one image takes.
        """
        if self.images is not None or self.until == math.inf:
            return self.first_images(batch)
        affordable = (self.until - time.perf_counter()) / (self.most * seconds)
        return max(1, min(batch, int(affordable)))

    def goes_on(self, seconds: float) -> bool:
        """Whether there is time for another step that takes this many seconds."""
        return self.steps is not None or time.perf_counter() + seconds <= self.until
