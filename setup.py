# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Packaging of d2kd."""

from setuptools import find_packages, setup

setup(
    name="d2kd",
    version="0.1.0",
    description="Knowledge distillation for Detectron2 detectors",
    license="Apache-2.0",
    packages=find_packages(include=("d2kd", "d2kd.*")),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.0",
        "torchvision",
        # Any 0.6 or later: the pure-Python build in packaging/detectron2, a release, or main.
        "detectron2>=0.6",
        "fvcore",
        "iopath",
        "pycocotools",
        "numpy",
        # Headless: the package draws into arrays and opens no windows, and servers lack libGL.
        "opencv-python-headless",
    ],
    extras_require={
        "test": ["pytest", "black", "isort", "torchmetrics"],
        # Only to compare with, in tools/bench_compare.py.
        "benchmark": ["kornia", "pytorch-msssim", "torchmetrics"],
    },
)
