# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What passes through the parts of a student while its own training forward runs.

Shape shorthand in this file:
    N: images; A: anchors per location; R: sampled proposals of one image; K: foreground classes
    C, H, W: channels, height and width of a feature level
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ...utils.errors import PairMismatchError

__all__ = ["BackboneRecorder", "BoxLossRecorder", "RPNHeadRecorder", "Recorder", "in_place_of"]


class Recorder(nn.Module):
    """Stands in for a part during a forward: does what the part does, and remembers its output.

    It has no parameters of its own, and everything else that is read of it is the part's.
    """

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part
        self.training = part.training
        self.inputs: tuple = ()
        self.output: Any = None
        self.calls = 0

    def forward(self, *inputs: Any, **named: Any) -> Any:
        self.calls += 1
        self.inputs = inputs
        self.output = self.part(*inputs, **named)
        return self.output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.part, name)

    def check_once(self, calls: int, what: str) -> None:
        """Raises PairMismatchError where the forward did not use the part once for the batch."""
        if calls != 1:
            raise PairMismatchError(
                f"the student's training forward calls {what} {calls} times: what it gives can be "
                "compared of a detector that calls it once for a batch"
            )


class BackboneRecorder(Recorder):
    """Stands in for the backbone of a detector."""

    def features(self) -> dict[str, Tensor]:
        """Level name -> (N, C, H, W), as the backbone gave them."""
        self.check_once(self.calls, "its backbone")
        return dict(self.output)

    def images(self, batch: list[dict]) -> ImageList:
        """The batch as the student prepared it."""
        return ImageList(self.inputs[0], [tuple(x["image"].shape[-2:]) for x in batch])


class RPNHeadRecorder(Recorder):
    """Stands in for the head of an RPN."""

    def logits(self) -> list[Tensor]:
        """(N, A, H, W) of each level, attached to the graph."""
        self.check_once(self.calls, "the head of its RPN")
        return self.output[0]


class BoxLossRecorder(Recorder):
    """Stands in for a box predictor, whose losses get proposals and the predictions on them."""

    def __init__(self, part: nn.Module):
        super().__init__(part)
        self._losses_of: list[list[Instances]] = []

    def proposals(self) -> list[Instances]:
        """Of each image, those that the losses were computed of.

        Returns:
            with "proposal_boxes", "gt_classes", "gt_boxes" where there are any, "logits"
            (R, K + 1) and "deltas" (R, 4 or 4 * K). The last two are attached to the graph.
        """
        self.check_once(len(self._losses_of), "the losses of its box predictor")
        return self._losses_of[0]

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Any:
        """The part's own losses."""
        logits, deltas = (x.split([len(p) for p in proposals]) for x in predictions)
        # Copies: with TRAIN_ON_PRED_BOXES the heads then move the boxes of the proposals.
        given = [
            Instances(
                p.image_size,
                **{k: p.get(k) for k in ("proposal_boxes", "gt_classes", "gt_boxes") if p.has(k)},
                logits=logits_i,
                deltas=deltas_i,
            )
            for p, logits_i, deltas_i in zip(proposals, logits, deltas)
        ]
        self._losses_of.append(given)
        return self.part.losses(predictions, proposals)


@contextmanager
def in_place_of(owner: nn.Module, name: str, recorder: Recorder) -> Iterator[None]:
    """Within the block ``owner`` has the recorder for its child ``name``.

    The forward that runs is the student's own, on the student itself, whatever its class does in
    it: what it keeps on itself stays. A hook would be seen by whoever copies, saves or exports the
    student; a subclass would have to know every class; and outside of this block, the student and
    its state dict are those of plain Detectron2.
    """
    owner.add_module(name, recorder)
    try:
        yield
    finally:
        owner.add_module(name, recorder.part)
