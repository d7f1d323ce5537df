# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Fixtures: each test has its own DETECTRON2_DATASETS, and leaves the catalogs as they were."""

import pytest

from tests.common.toy_sets import write_image, write_xml


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch, clean_catalogs):
    """An empty data root (and home folder)."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def voc(root):
    """A VOC-layout set "toy" of two images, a.jpg and b.jpg, and the declaration of it."""
    write_image(root / "toy" / "jpg" / "a.jpg")
    write_image(root / "toy" / "jpg" / "b.jpg")
    write_xml(root / "toy" / "xml" / "a.xml", [("dog", (1, 1, 64, 48)), ("cat", (11, 6, 20, 30))])
    write_xml(root / "toy" / "xml" / "b.xml", [("dog", (5, 5, 30, 30), "difficult")])
    (root / "toy" / "all.txt").write_text("a\nb\n")
    return {
        "FORMAT": "voc",
        "ANNOTATIONS": "toy/xml",
        "IMAGES": "toy/jpg",
        "SPLIT": "toy/all.txt",
    }
