# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What several folders of tests share; helpers.py builds the tiny detectors."""

import os
import signal

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

import d2kd.data  # noqa: F401  registers the shapes, which stay registered
from tests.common import ROOT
from tests.common.helpers import TRAIN_SET, register_train_set, write_teacher

# One thread, also in processes that tests start: tiny networks are fastest so, and sums are always
# taken in the same order.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """A shell lets its background jobs, and all that they start, ignore what tests send."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def clean_catalogs():
    """Data sets that the test registers are gone after it."""
    before = {*DatasetCatalog.list(), *MetadataCatalog.list()}
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in set(catalog.list()) - before:
            catalog.remove(name)


@pytest.fixture(scope="session")
def teacher_files(tmp_path_factory):
    """(yaml, checkpoint) of a teacher that is wider than the student."""
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def train_set(tmp_path_factory):
    """The registered name of eight images with ground truth."""
    register_train_set(tmp_path_factory.mktemp("images"))
    yield TRAIN_SET
    DatasetCatalog.remove(TRAIN_SET)


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """The JSON of a real, tiny run with memory."""
    from d2kd.benchmark import command

    path = tmp_path_factory.mktemp("benchmark") / "shapes" / "a.json"
    config = str(
        ROOT / "configs/shapes/TAR/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml"
    )
    options = ["--size", "64", "64", "--batch", "1", "--steps", "2", "--warmup", "1"]
    options += ["--config-file", config, "--output", str(path), "--random-weights"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        command.main([*options, "--threads", "1", "MODEL.DEVICE", "cpu"])
    return path
