# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""By how much an exported file may differ from PyTorch."""

from typing import NamedTuple

from ..utils.errors import ExportError
from .agreement import Agreement

__all__ = ["TOLERANCES", "Tolerance", "check_agreement"]

_MOST_OF_A_MASK = 0.1


class Tolerance(NamedTuple):
    """Limits of the differences.

    Attributes:
        of: "largest" or "mean" difference that is limited.
        box: in pixels.
        score: of a detection; 0 to 1.
    """

    of: str
    box: float
    score: float


# Rounding to fewer bits lets near-equal boxes change places now and then, and with them a single
# detection by many pixels. So only their mean is limited.
TOLERANCES = {
    "float32": Tolerance("largest", 0.1, 0.001),
    "float16": Tolerance("mean", 0.5, 0.01),
    "int8": Tolerance("mean", 2.0, 0.1),
}


def check_agreement(found: Agreement, allowed: Tolerance, path: str) -> None:
    """Refuse a file that differs by more.

    Args:
        found: between PyTorch and the file.
        allowed: from TOLERANCES, or given by the user.
        path: of the file, for the message.

    Raises:
        ExportError: it does; says by how much.
    """
    box, score = getattr(found, f"{allowed.of}_box"), getattr(found, f"{allowed.of}_score")
    masks = found.largest_mask if allowed.of == "largest" else 0.0
    # Written so that a difference that is no number does not pass.
    if box <= allowed.box and score <= allowed.score and masks <= _MOST_OF_A_MASK:
        return
    raise ExportError(
        f"{path} does not agree with PyTorch: its {allowed.of} difference is {box:.3g} px "
        f"(allowed {allowed.box:g}) and {score:.3g} in score (allowed {allowed.score:g}), masks "
        f"{masks:.3g} (allowed {_MOST_OF_A_MASK:g}). Do not use it. --max-box-difference and "
        "--max-score-difference change what is allowed"
    )
