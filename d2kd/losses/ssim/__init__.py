# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Structural similarity of feature maps (arXiv 2211.13133)."""
