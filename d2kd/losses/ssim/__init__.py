"""Structural similarity of feature maps (arXiv 2211.13133)."""
