# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a step was made of, kept until the next one, to explain a loss that is not finite."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["StepRecord", "random_state"]


def random_state() -> dict[str, Tensor]:
    """State of the streams that a step's sampling draws from; reading it waits for no GPU."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


@dataclass
class StepRecord:
    """One step's inputs and losses, as far as it has come.

    Attributes:
        batch: what the data loader gave.
        random: the random streams before the forward.
        losses: name -> detached scalar; empty if the forward did not get there.
        by_level: distillation loss -> level -> detached scalar, of those that sum over levels.
    """

    batch: list[dict]
    random: dict[str, Tensor] = field(default_factory=random_state)
    losses: dict[str, Tensor] = field(default_factory=dict)
    by_level: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def bad_levels(self) -> dict[str, list[str]]:
        """Distillation loss -> its levels that are not finite."""
        return {
            name: [level for level, loss in levels.items() if not loss.isfinite()]
            for name, levels in self.by_level.items()
        }
