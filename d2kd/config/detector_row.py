# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""One row of the detector table (``detectors.py``)."""

from collections.abc import Callable
from dataclasses import dataclass

from detectron2.config import CfgNode

__all__ = ["Detector", "PlainFacts"]


def _add_no_keys(cfg: CfgNode) -> None:
    """The detector reads Detectron2's own keys only."""


@dataclass(frozen=True)
class PlainFacts:
    """What the checks know of a meta-architecture that trains with or without a teacher.

    Attributes:
        own_groups: nodes under MODEL that it reads, of those that one detector alone has; None if
            it may read anything.
        predicts: outputs of its inference that an evaluator reads; None if unknown.
        draws: whether it draws training images without a teacher, with which d2kd does
            (VIS_PERIOD).
    """

    own_groups: frozenset[str] | None = None
    predicts: frozenset[str] | None = None
    draws: bool = True


@dataclass(frozen=True)
class Detector:
    """A meta-architecture and those that extend it, as checks and paired forward know them.

    Attributes:
        name: MODEL.META_ARCHITECTURE, which is the name of the detector's class.
        forward_pair: name in PAIR_FORWARD_REGISTRY of the function that runs student and teacher.
        outputs: fields of ``DetectorOutputs`` besides "features" that its heads give. Losses that
            require another field are refused. Empty: only features can be distilled.
        num_classes_key: key of the number of foreground classes; None if there is none.
        dense_levels_key: key of the feature levels that the dense head (an RPN, in a two-stage
            detector) reads; None if there is no such head.
        box_keys: keys that fix the box encoding: they must agree wherever boxes are compared.
        anchor_keys: keys that fix the anchors of the dense head.
        cross_head_keys: keys of the depth (first) and of the width of its dense head's branches,
            which must agree where the student's head features go through the teacher's layers.
            Empty: they cannot (DISTILL.CROSS_HEAD).
        two_stage: it has proposals. What its parts give is looked at when a loss reads them.
        add_config: adds the config nodes that the detector brings along, with their defaults.
            ``add_d2kd_config`` calls it; student.yaml keeps these nodes for this detector.
        plain: what does not depend on a teacher; a detector of your own may leave it out.
    """

    name: str
    forward_pair: str
    outputs: frozenset[str] = frozenset()
    num_classes_key: str | None = None
    dense_levels_key: str | None = None
    box_keys: tuple[str, ...] = ()
    anchor_keys: tuple[str, ...] = ()
    cross_head_keys: tuple[str, ...] = ()
    two_stage: bool = False
    add_config: Callable[[CfgNode], None] = _add_no_keys
    plain: PlainFacts = PlainFacts()

    @property
    def has_box_bins(self) -> bool:
        """Its head predicts distributions over the positions of a box's edges."""
        return "box_bins" in self.outputs
