# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""GFL: generalized focal loss (arXiv 2006.04388)."""

from .box_transform import StrideBoxTransform
from .gfl import GFL

__all__ = ["GFL", "StrideBoxTransform"]
