"""Floor 4: detectors, and how a student and its teacher are run side by side."""

from . import dense, fcos, gfl, rcnn  # noqa: F401  registers meta-architectures and observers
from .distiller import LOSS_PREFIX, Distiller
from .observe import register_observer
from .roi_heads import SharedProposalROIHeads
from .teacher import FrozenTeacher

__all__ = [
    "LOSS_PREFIX",
    "Distiller",
    "FrozenTeacher",
    "SharedProposalROIHeads",
    "register_observer",
]
