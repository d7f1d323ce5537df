# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The synthetic set: what is drawn, and how it gets onto the disk."""

import multiprocessing

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.data.datasets import synthetic_images as shape_images
from d2kd.data.datasets import synthetic_shapes as shapes
from d2kd.data.datasets.synthetic_images import (
    CLASSES,
    draw_picture,
    place_shapes,
    polygon_mask,
    unit_polygon,
)


def outline(name, seed=0):
    return unit_polygon(name, np.random.default_rng(seed)).astype(np.float32)


def test_picture_is_a_function_of_split_and_index():
    first, boxes = draw_picture(shapes.picture_rng("val", 5))
    again, same_boxes = draw_picture(shapes.picture_rng("val", 5))
    assert np.array_equal(first, again) and boxes == same_boxes
    for other in (("val", 6), ("test", 5)):
        assert not np.array_equal(first, draw_picture(shapes.picture_rng(*other))[0])


def test_what_is_drawn_belongs_to_its_version():
    # Whoever changes what is drawn raises VERSION (and then this): else old folders stay in use.
    _, drawn = draw_picture(shapes.picture_rng("train", 0))
    assert shapes.VERSION == 2
    names = [CLASSES[shape.category] for shape in drawn]
    assert names == ["ellipse", "star", "ellipse", "star", "pentagon", "rectangle"]
    assert np.allclose(drawn[0].box, (90.23, 107.92, 100.20, 121.56), atol=0.01)


@pytest.mark.parametrize(
    "name, aspect, solidity",
    [
        ("circle", (1.0, 1.01), (0.99, 1.0)),
        ("ellipse", (1.34, 2.21), (0.99, 1.0)),
        ("square", (1.0, 1.01), (0.99, 1.0)),
        ("rectangle", (1.34, 2.21), (0.99, 1.0)),
        ("pentagon", (1.0, 1.06), (0.99, 1.0)),
        ("star", (1.0, 1.06), (0.4, 0.75)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_classes_differ_by_aspect_or_notches(name, aspect, solidity, seed):
    points = outline(name, seed)
    width, height = points.max(axis=0) - points.min(axis=0)
    assert aspect[0] - 1e-4 <= max(width, height) / min(width, height) <= aspect[1]
    filled = cv2.contourArea(points) / cv2.contourArea(cv2.convexHull(points))
    assert solidity[0] <= filled <= solidity[1] + 1e-4


def test_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="Unknown shape 'cube'"):
        unit_polygon("cube", np.random.default_rng(0))


@pytest.mark.parametrize("name", CLASSES)
def test_mask_covers_the_polygon_to_a_fraction_of_a_pixel(name):
    points = outline(name) * 20.3 + (70.4, 81.7)
    mask, area = polygon_mask(points)
    assert area == pytest.approx(cv2.contourArea(points.astype(np.float32)), rel=0.04)
    assert mask.sum() == pytest.approx(area, rel=1e-4)
    # Extents from the coverage's profile: where a row or column is at least touched.
    rows, columns = np.nonzero(mask.max(axis=1))[0], np.nonzero(mask.max(axis=0))[0]
    extents = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(extents - np.concatenate([points.min(axis=0), points.max(axis=0)])).max() <= 1.3


def test_every_shape_stays_visible_and_has_the_stated_size():
    sizes, counts, categories = [], [], set()
    for seed in range(60):
        placed, masks = place_shapes(np.random.default_rng(seed))
        counts.append(len(placed))
        for index, (shape, mask) in enumerate(zip(placed, masks)):
            in_sight = mask * np.prod([1 - other for other in masks[index + 1 :]], axis=0)
            assert in_sight.sum() >= shape_images.MIN_VISIBLE * mask.sum() - 1e-3
            x0, y0, x1, y1 = shape.box
            assert 0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 160
            if x0 > 0 and y0 > 0 and x1 < 160 and y1 < 160:
                sizes.append(max(x1 - x0, y1 - y0))
            categories.add(shape.category)
    assert set(counts) == {1, 2, 3, 4, 5, 6} and categories == set(range(6))
    assert 10 - 1e-6 <= min(sizes) < 13 and 65 < max(sizes) <= 80 + 1e-6


@pytest.fixture
def few_images(monkeypatch):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        monkeypatch.setitem(shapes.SPLITS, split, count)


def test_first_use_generates_and_registers(root, few_images, capsys):
    records = DatasetCatalog.get("d2kd_shapes_train")
    assert len(records) == 3 and len(DatasetCatalog.get("d2kd_shapes_test")) == 1
    assert capsys.readouterr().out.count("Drawing the 6 images") == 1
    assert MetadataCatalog.get("d2kd_shapes_val").thing_classes == list(CLASSES)
    image, drawn = draw_picture(shapes.picture_rng("train", 1))
    on_disk = cv2.imread(records[1]["file_name"])
    assert records[1]["file_name"].startswith(str(root)) and on_disk.shape == (160, 160, 3)
    assert np.abs(on_disk.astype(float) - image).mean() < 8
    assert [item["category_id"] for item in records[1]["annotations"]] == [
        s.category for s in drawn
    ]
    x, y, width, height = records[1]["annotations"][0]["bbox"]
    assert np.allclose((x, y, x + width, y + height), drawn[0].box, atol=0.02)


def test_read_only_root_falls_back_to_the_cache(root, few_images, tmp_path):
    root.chmod(0o555)
    try:
        folder = shapes.shapes_folder()
    finally:
        root.chmod(0o755)
    assert folder == tmp_path / "home" / ".cache" / "d2kd" / shapes.FOLDER
    assert not list(root.iterdir())


def test_set_in_a_read_only_root_is_used(root, few_images):
    generated = shapes.shapes_folder()
    root.chmod(0o555)
    try:
        assert shapes.shapes_folder() == generated == root / shapes.FOLDER
    finally:
        root.chmod(0o755)


def test_failure_leaves_nothing(root, monkeypatch):
    monkeypatch.setattr(cv2, "imwrite", lambda *_: False)
    with pytest.raises(OSError, match="disk full"):
        shapes.generate(root / "set" / "v1", {"train": 2})
    assert [path.name for path in (root / "set").iterdir()] == ["v1.lock"]


def _generate(folder):
    shapes.generate(folder, {"train": 20})


def test_two_processes_generate_one_set(root):
    folder = root / "set" / "v1"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_generate, args=(folder,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list((folder / "train").iterdir())) == 20
    assert sorted(path.name for path in folder.parent.iterdir()) == ["v1", "v1.lock"]
