# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""VIS_PERIOD: the pictures of what the losses compare, during a distilled training."""

import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from ..data import class_names
from ..modeling import Distiller
from ..structures import DistillStep
from ..utils.rng_state import kept_random_state
from ..visualize import draw_figure, to_pixels, view_image, view_student
from .unwrap import unwrap

__all__ = ["VisPeriodHook"]


class VisPeriodHook(HookBase):
    """Puts the figure of one training image into the storage every few iterations.

    It draws what the step itself has computed, beside the detections of both networks, before the
    optimizer's step. Nothing of the training changes: weights, running statistics and random
    streams stay as they are. Register it in the main process alone, before the writers. Once all
    losses are over, no teacher runs and nothing is drawn.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: of the training.
        """
        self.period = cfg.VIS_PERIOD
        self.image_format = cfg.INPUT.FORMAT
        self.classes = class_names(cfg)

    def before_step(self) -> None:
        """In every VIS_PERIOD-th iteration, look at the first batch."""
        if self.trainer.iter % self.period == 0:
            self._model.register_step_hook(self)

    def after_step(self) -> None:
        """An iteration without a teacher has no step to look at."""
        self._model.register_step_hook(None)

    def __call__(self, batch: list[dict[str, Any]], step: DistillStep) -> None:
        """Draw one image of the batch: the first that has a box."""
        model = self._model
        # Of the batches of one iteration (SOLVER.ACCUMULATE_STEPS) the first is drawn.
        model.register_step_hook(None)
        image = int(step.gt_image.min()) if len(step.gt_image) else 0
        with kept_random_state():
            student = view_student(f"at iteration {self.trainer.iter}", model, batch, step, image)
            view = view_image(
                os.path.basename(batch[image].get("file_name", "")),
                model,
                batch[image],
                [student],
                strides=step.strides,
                image_format=self.image_format,
                classes=self.classes,
            )
            pixels = to_pixels(draw_figure(view))
        self.trainer.storage.put_image("distillation", pixels.transpose(2, 0, 1))

    @property
    def _model(self) -> Distiller:
        return unwrap(self.trainer.model)
