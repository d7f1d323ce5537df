# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The frozen teacher: a detector that never trains, never moves, and answers only when asked.

Shape shorthand in this file:
    N: images; C, H, W: channels, height and width of a feature level
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn

from .precision import call_in

__all__ = ["FrozenTeacher"]

logger = logging.getLogger(__name__)


class FrozenTeacher(nn.Module):
    """A Detectron2 detector in eval mode and without gradients, whatever is done around it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        swap_channels: bool = False,
        identity: dict[str, str] | None = None,
    ):
        """
        Args:
            model: a detector with its weights loaded.
            swap_channels: the batch is read in the student's INPUT.FORMAT and the teacher's is the
                other of RGB and BGR.
            identity: "weights" and "sha256" of the file that was loaded.
        """
        super().__init__()
        self.model = model.requires_grad_(False)
        self.swap_channels = swap_channels
        self.identity = identity or {}
        self._reuses_student_inputs = False
        self._channels_last = False
        self._precision = "student"
        self._compiled: Callable[[Tensor], dict[str, Tensor]] | None = None
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in eval mode: ``train()`` of the module around it must not reach the teacher."""
        return super().train(False)

    def arrange(
        self, layout: str, compiled: bool = False, precision: str = "student"
    ) -> "FrozenTeacher":
        """Choose how the same is computed: values change by rounding alone.

        Args:
            layout: DISTILL.TEACHER.LAYOUT; "auto" is channels_last on a CPU, whose convolutions
                otherwise copy their inputs into it and their outputs back.
            compiled: run the backbone through torch.compile, with its weights as constants.
            precision: DISTILL.TEACHER.PRECISION.
        """
        on_cpu = self.model.device.type == "cpu"
        self._channels_last = layout == "channels_last" or (layout == "auto" and on_cpu)
        self._precision = precision
        if on_cpu and precision == "float16":
            logger.warning(
                "CPUs emulate float16, which takes many times as long as float32: set "
                "DISTILL.TEACHER.PRECISION to 'bfloat16'"
            )
        if self._channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compiled:
            # The method and not the module, which would be a second name of the same weights.
            run = self.model.backbone.forward
            self._compiled = torch.compile(run, options={"freezing": True})
        return self

    def reuse_student_inputs(self, student: nn.Module) -> None:
        """From now on take the student's prepared images, if that changes nothing."""
        ours, theirs = self.model, student
        padding = [
            (x.backbone.size_divisibility, getattr(x.backbone, "padding_constraints", None))
            for x in (ours, theirs)
        ]
        self._reuses_student_inputs = (
            not self.swap_channels
            and padding[0] == padding[1]
            # A model on the meta device, as of a dry run, has no statistics to compare.
            and not ours.pixel_mean.is_meta
            and torch.equal(ours.pixel_mean, theirs.pixel_mean)
            and torch.equal(ours.pixel_std, theirs.pixel_std)
        )

    @torch.no_grad()
    def features(self, batch: list[dict], prepared: ImageList | None = None) -> dict[str, Tensor]:
        """Backbone features of a batch, prepared by the teacher's own statistics and padding.

        Args:
            batch: what the data loader gave; "image" is (3, H, W) in the student's channel order.
            prepared: the same batch as the student's ``preprocess_image`` made it.

        Returns:
            dict: level name -> (N, C, H, W).
        """
        images = prepared
        if prepared is None or not self._reuses_student_inputs:
            if self.swap_channels:
                batch = [{"image": x["image"].flip(0)} for x in batch]
            images = self.model.preprocess_image(batch)
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        backbone = self._compiled or self.model.backbone
        return self.call(backbone, images.tensor.contiguous(memory_format=layout))

    def call(self, part: Callable, *inputs: Any) -> Any:
        """``part(*inputs)``, a part of the model, in DISTILL.TEACHER.PRECISION; see ``call_in``."""
        return call_in(self._precision, self.model.device.type, part, *inputs)
