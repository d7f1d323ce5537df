# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The frozen teacher: a detector that is never trained and runs only what the losses require.

Shape shorthand in this file:
    N: images; C, H, W: channels, height and width of a feature level
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn

from .square_padding import check_fits_square, crop_maps, pad_to_square, padded_size, square_size
from .teacher_cache.cached_maps import MapsByPart, TeacherCache

__all__ = ["FrozenTeacher"]

logger = logging.getLogger(__name__)


class FrozenTeacher(nn.Module):
    """A Detectron2 detector in eval mode and without gradients, whatever is done around it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        swap_channels: bool = False,
        layout: str = "channels_first",
        compiled: bool = False,
        precision: str = "student",
        fingerprint: dict[str, str] | None = None,
        classes: Sequence[str] = (),
        cache: TeacherCache | None = None,
    ):
        """
        Layout, compilation and precision change the computed values by rounding alone.

        Args:
            model: a detector with its weights loaded.
            swap_channels: the batch is read in the student's INPUT.FORMAT and the teacher's is the
                other of RGB and BGR.
            layout: DISTILL.TEACHER.LAYOUT; "auto" is channels_last on a CPU, whose convolutions
                otherwise copy their inputs into that layout and their outputs back.
            compiled: run the backbone through torch.compile, with its weights as constants.
            precision: DISTILL.TEACHER.PRECISION.
            fingerprint: "weights" and "sha256" of the file that was loaded.
            classes: the names that this file records; empty if none.
            cache: of DISTILL.TEACHER.CACHE.
        """
        super().__init__()
        self.model = model.requires_grad_(False)
        self.swap_channels = swap_channels
        self.fingerprint = fingerprint or {}
        self.classes = tuple(classes)
        self.cache = cache
        self._reuses_student_inputs = False
        self._square = square_size(model.backbone)
        # To which the student pads; known with the student.
        self._multiple = model.backbone.size_divisibility
        self._precision = precision
        on_cpu = model.device.type == "cpu"
        if on_cpu and precision == "float16":
            logger.warning(
                "CPUs emulate float16, which takes many times as long as float32: set "
                "DISTILL.TEACHER.PRECISION to 'bfloat16'"
            )
        self._channels_last = layout == "channels_last" or (layout == "auto" and on_cpu)
        if self._channels_last:
            model.to(memory_format=torch.channels_last)
        # The method and not the module, which would be a second name of the same weights.
        run = model.backbone.forward
        self._backbone = torch.compile(run, options={"freezing": True}) if compiled else None
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in eval mode: ``train()`` of the module around it must not reach the teacher."""
        return super().train(False)

    def reuse_student_inputs(self, student: nn.Module) -> None:
        """From now on take the student's prepared images, if both prepare them alike.

        Maps of a teacher that pads to a square are cropped to the student's padded images.
        """
        self._multiple = student.backbone.size_divisibility
        ours, theirs = self.model, student
        padding = [
            (x.backbone.size_divisibility, getattr(x.backbone, "padding_constraints", None))
            for x in (ours, theirs)
        ]
        self._reuses_student_inputs = (
            not self.swap_channels
            and padding[0] == padding[1]
            # A detector of one's own may normalise images in its own way.
            and all(hasattr(x, "pixel_mean") for x in (ours, theirs))
            # A model on the meta device, as of a dry run, has no statistics to compare.
            and not ours.pixel_mean.is_meta
            and torch.equal(ours.pixel_mean, theirs.pixel_mean)
            and torch.equal(ours.pixel_std, theirs.pixel_std)
        )

    def features(self, batch: list[dict], prepared: ImageList | None = None) -> dict[str, Tensor]:
        """Backbone features of a batch, from the cache where there is one.

        Args:
            batch: what the data loader gave; "image" is (3, H, W) in the student's channel order.
            prepared: the same batch as the student's ``preprocess_image`` made it.

        Returns:
            dict: level name -> (N, C, H, W).
        """
        maps = self.maps(batch, prepared, ["features"], lambda features: {"features": features})
        return maps["features"]

    @torch.no_grad()
    def maps(
        self,
        batch: list[dict],
        prepared: ImageList | None,
        parts: Sequence[str],
        run_heads: Callable[[dict[str, Tensor]], MapsByPart],
    ) -> MapsByPart:
        """Maps of a batch, from the cache where there is one.

        Args:
            batch, prepared: of ``features``.
            parts: those that the cache must give.
            run_heads: backbone features -> all parts, the features among them if they are one.

        Returns:
            part -> level name -> (N, C, H, W).
        """
        if self.cache is None:
            return run_heads(self.run_backbone(batch, prepared))
        return self.cache.fetch(batch, parts, lambda one: run_heads(self.run_backbone(one)))

    def leave_cache(self) -> None:
        """From now on run the backbone in every step, and keep nothing."""
        self.cache = None

    def run_backbone(
        self, batch: list[dict], prepared: ImageList | None = None
    ) -> dict[str, Tensor]:
        """Backbone features of a batch, prepared by the teacher's own statistics and padding."""
        own = prepared is None or not self._reuses_student_inputs
        images = self.preprocess(batch) if own else prepared
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        with self.computing():
            backbone = self._backbone or self.model.backbone
            features = backbone(images.tensor.contiguous(memory_format=layout))
        if own and self._square:
            size = padded_size(batch, self._multiple)
            if prepared is not None:
                size = tuple(prepared.tensor.shape[-2:])
            features = crop_maps(features, self.model.backbone.output_shape(), size)
        return self.as_float32(features)

    def preprocess(self, batch: list[dict]) -> ImageList:
        """The batch normalised and padded as the teacher was trained."""
        if self._square:
            check_fits_square(batch, self._square)
        batch = self._in_own_format(batch)
        if hasattr(self.model, "preprocess_image"):
            images = self.model.preprocess_image(batch)
            return pad_to_square(images, self._square) if self._square else images
        # Detectron2's ProposalNetwork and, in 0.6, SemanticSegmentor do this in their forward.
        model = self.model
        images = [(x["image"].to(model.device) - model.pixel_mean) / model.pixel_std for x in batch]
        return ImageList.from_tensors(images, model.backbone.size_divisibility)

    def detect(self, batch: list[dict]) -> list[dict]:
        """What the whole teacher finds on a batch, as its class returns it in eval mode."""
        with self.computing():
            return self.model(self._in_own_format(batch))

    def _in_own_format(self, batch: list[dict]) -> list[dict]:
        if not self.swap_channels:
            return batch
        return [{**x, "image": x["image"].flip(0)} for x in batch]

    @contextmanager
    def computing(self) -> Iterator[None]:
        """No gradients, and DISTILL.TEACHER.PRECISION: run parts of ``model`` inside.

        Weights stay float32: casting them at each call takes no measurable time beside what is
        computed with them, normalisation layers keep their precision on every device, and what a
        student inherits is exact. Converting them was as fast and as far from float32.
        """
        device, precision = self.model.device.type, self._precision
        with torch.no_grad():
            if precision == "student":  # as the code around it: half under SOLVER.AMP
                yield
                return
            half = precision != "float32"
            dtype = getattr(torch, precision) if half else None
            with torch.autocast(device, dtype, enabled=half):
                yield

    def as_float32(self, outputs: Any) -> Any:
        """What a part gave, in float32; as it is where the precision is the student's.

        Args:
            outputs: a tensor, or a dict or sequence of outputs.
        """
        if self._precision == "student":
            return outputs
        if isinstance(outputs, Tensor):
            return outputs.float()
        if isinstance(outputs, dict):
            return {name: self.as_float32(value) for name, value in outputs.items()}
        return [self.as_float32(value) for value in outputs]
