# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Detectors as functions from tensors to tensors, which exporters can record."""
