# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How many training steps are tried, and on how many images, so that they end in time."""

import math
import time
from dataclasses import dataclass

__all__ = ["StepBudget"]

# A median needs a few; gradients that are 0 in one batch may not be in the next.
MOST = 4


@dataclass(frozen=True)
class StepBudget:
    """What was asked for; what was not is chosen by the time that is left.

    Attributes:
        steps: that are timed, after one that warms up; None for MOST, fewer where time is short.
        images: of each batch, 0 for all; None for all, fewer where time is short.
        until: ``time.perf_counter()`` by which the steps should have ended.
    """

    steps: int | None = None
    images: int | None = None
    until: float = math.inf

    @property
    def most(self) -> int:
        """Steps after the one that warms up."""
        return MOST if self.steps is None else self.steps

    def first_images(self, batch: int) -> int:
        """Of a batch, for the step that warms up: one where time counts and none is known yet."""
        if self.images is None and self.until < math.inf:
            return 1
        return min(self.images or batch, batch)

    def later_images(self, batch: int, seconds: float) -> int:
        """Of a batch, for the other steps, where one image takes so many seconds."""
        if self.images is not None or self.until == math.inf:
            return self.first_images(batch)
        affordable = (self.until - time.perf_counter()) / (self.most * seconds)
        return max(1, min(batch, int(affordable)))

    def goes_on(self, seconds: float) -> bool:
        """Whether there is time for a further step of so many seconds."""
        return self.steps is not None or time.perf_counter() + seconds <= self.until
