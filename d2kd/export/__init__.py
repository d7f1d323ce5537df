# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Files of a trained student that run without Detectron2, and proof that they are right."""

from .run import export

__all__ = ["export"]
