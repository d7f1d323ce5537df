# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Detectors that Detectron2 has not as a yaml config: FCOS and GFL."""
