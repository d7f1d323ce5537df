"""GFL: generalized focal loss (arXiv 2006.04388)."""

from .gfl import GFL, StrideBoxTransform

__all__ = ["GFL", "StrideBoxTransform"]
