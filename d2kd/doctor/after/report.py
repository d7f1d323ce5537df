# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What the comparison of two runs found, for the page and the console."""

from dataclasses import dataclass, field

from ..finding import Finding
from .bootstrap import Difference
from .box_agreement import BoxAgreement
from .found_objects import FoundObjects
from .imitation import Imitation
from .run_folder import RunFolder

__all__ = ["Report", "SetReport"]


@dataclass(frozen=True)
class SetReport:
    """Both students and the teacher on one test set.

    Attributes:
        name: of the set; images, objects: how many it has.
        sources: where the detections of each are from: who -> sentence.
        differences: of the distilled student to the baseline, AP first, then by size and class.
        teacher: of the teacher to the baseline, likewise; empty where it cannot be tested.
        found: all objects, then those of each class; empty without a teacher.
        agreement: distilled student, baseline -> their boxes beside the teacher's.
    """

    name: str
    images: int
    objects: int
    sources: dict[str, str]
    differences: list[Difference]
    teacher: list[Difference] = field(default_factory=list)
    found: list[FoundObjects] = field(default_factory=list)
    agreement: tuple[BoxAgreement, BoxAgreement] | None = None

    @property
    def whole(self) -> Difference:
        """AP over all classes and sizes."""
        return self.differences[0]


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        distilled, baseline: the runs.
        notes: what blurs the comparison, or could not be measured.
        sets: one for each of DATASETS.TEST.
        imitation: of the distilled student and of the baseline; None where not measured.
        imitation_note: what is left out of it; "" if nothing is.
        resamples, seed: of the bootstrap.
    """

    distilled: RunFolder
    baseline: RunFolder
    notes: list[Finding]
    sets: list[SetReport]
    imitation: tuple[Imitation | None, Imitation | None]
    imitation_note: str
    resamples: int
    seed: int
