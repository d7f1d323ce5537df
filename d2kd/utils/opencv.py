# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Imports OpenCV before Detectron2 does, to say what to install where it cannot be loaded.

``opencv-python`` needs libGL, which servers and containers often lack. Its headless build does not.
"""

try:
    import cv2  # noqa: F401
except ImportError as error:
    if ".so" not in str(error):
        raise
    raise ImportError(
        f"OpenCV cannot be loaded: {error}. Replace it by the build that needs no display: "
        "pip uninstall -y opencv-python && pip install opencv-python-headless. "
        "Uninstall first: both write the folder cv2, so side by side they break each other."
    ) from error
