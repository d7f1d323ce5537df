# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Pairs of toy detectors, and one training step of each as both saw it."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from tests.common.detectors import detector_cfg, write_teachers
from tests.common.helpers import build_distiller, make_batch


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """Detector -> (yaml, checkpoint)."""
    return write_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture
def take_step(teachers):
    """A function: detector and keys -> (distiller, batch, step)."""

    def take(detector="GeneralizedRCNN", **keys):
        keys = {name.replace("__", "."): value for name, value in keys.items()}
        distiller = build_distiller(detector_cfg(teachers, detector, keys))
        batch = make_batch()
        torch.manual_seed(5)
        with torch.no_grad(), EventStorage():
            parts = (distiller.student, distiller.teacher, batch, distiller.required)
            _, step = distiller.forward_pair(*parts)
        return distiller, batch, step

    return take
