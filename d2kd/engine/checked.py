"""Detectron2's trainers, which in every process look at the losses before the optimizer's step."""

from typing import Any, Dict

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import Tensor

__all__ = ["CheckedAMPTrainer", "CheckedTrainer"]


class CheckedTrainer(SimpleTrainer):
    """SimpleTrainer that stops at a loss that is not finite also where its process is not the main.

    Detectron2's main process looks at the mean over processes; which of them is at fault, and on
    what images, that one alone can say.
    """

    def _write_metrics(self, loss_dict: Dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        super()._write_metrics(loss_dict, *args, **kwargs)
        if comm.is_main_process():
            return
        # The line above has just waited for these values: a read of all adds no wait for a GPU.
        losses = torch.stack([loss.detach().float().reshape(()) for loss in loss_dict.values()])
        if not losses.isfinite().all().item():
            raise FloatingPointError(f"a loss of process {comm.get_rank()} is not finite")


class CheckedAMPTrainer(CheckedTrainer, AMPTrainer):
    """The same in half precision."""
