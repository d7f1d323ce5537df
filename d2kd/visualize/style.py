# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Colours, line widths and sizes that all panels share."""

from matplotlib.patheffects import AbstractPathEffect, withStroke

__all__ = ["ACCEPTED", "OUTLINE", "REFUSED", "SMALL", "STUDENT", "TEACHER", "TRUTH"]

# Okabe and Ito's colours, which colour-blind readers tell apart.
TRUTH = "#ffffff"
TEACHER = "#e69f00"
STUDENT = "#56b4e9"
ACCEPTED = "#00c08b"
REFUSED = "#ff6f3c"
# Points of text inside panels.
SMALL = 8.0
# Around lines, so that they can be seen on any image.
OUTLINE: list[AbstractPathEffect] = [withStroke(linewidth=2.4, foreground="black")]
