# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The report as one HTML page with plots."""

from .document import render_page, write_page

__all__ = ["render_page", "write_page"]
