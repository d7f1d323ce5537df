# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Pictures of what the distillation losses compare, at one image."""

from .figure import draw_figure, to_pixels
from .image_view import ImageView, StudentView, view_image, view_student

__all__ = ["ImageView", "StudentView", "draw_figure", "to_pixels", "view_image", "view_student"]
