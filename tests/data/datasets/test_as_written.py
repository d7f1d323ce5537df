# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Annotations are judged as they were written; every repair is counted by kind and logged."""

import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from d2kd.data import register_custom_datasets
from d2kd.utils.errors import DatasetError
from tests.common.toy_sets import coco_content, make_cfg, write_coco, write_image, write_xml

# x, y, width, height in 64 x 48 pixels.
BOXES = [[40, 30, 20, 10], [30, 20, 25, 24], [5, 6, 10, 12], [33, 2, 30, 40]]
KEEP = [(x, y, x + w, y + h) for x, y, w, h in BOXES]


def coco_of(boxes, **values):
    """COCO content whose image a.jpg has these boxes, written as they are."""
    content = coco_content()
    content["annotations"] = [
        {"id": i + 1, "image_id": 7, "category_id": 5, "bbox": list(box), **values}
        for i, box in enumerate(boxes)
    ]
    return content


def load(declaration, detections=100, name="toy"):
    """The remarks, check -> text, and the boxes of a.jpg."""
    cfg = make_cfg(train=[name], **{name: declaration})
    cfg.TEST.DETECTIONS_PER_IMAGE = detections
    remarks = register_custom_datasets(cfg)[name]
    records = {r["file_name"].split("/")[-1]: r for r in DatasetCatalog.get(name)}
    boxes = [tuple(item["bbox"]) for item in records["a.jpg"]["annotations"]]
    return {kind.check: text for kind, text in remarks.described()}, boxes


def test_nothing_is_remarked_on_where_nothing_is_odd(root, caplog):
    with caplog.at_level(logging.WARNING):
        remarks, boxes = load(write_coco(root, coco_of(BOXES)))
    assert not remarks and not caplog.records and boxes == KEEP


def test_negative_sizes_are_swapped_corners(root, caplog):
    x, y, w, h = BOXES[0]
    written = [[x + w, y + h, -w, -h], [x + w, y, -w, h], [x, y + h, w, -h], BOXES[0]]
    remarks, boxes = load(write_coco(root, coco_of(written)))
    assert set(boxes) == {KEEP[0]} and len(boxes) == 4
    assert remarks["boxes swapped"].startswith("3 boxes have a negative width or height")
    assert "a.jpg" in remarks["boxes swapped"]
    assert "toy: 3 boxes have a negative width or height" in caplog.text


def test_voc_corners_in_the_wrong_order_are_swapped(root, voc):
    right = ("dog", (31, 11, 60, 40))
    write_xml(root / "toy/xml/a.xml", [right, ("cat", (60, 11, 31, 40)), ("cat", (60, 40, 31, 11))])
    remarks, boxes = load(voc)
    assert boxes == [(30, 10, 60, 40)] * 3
    assert remarks["boxes swapped"].startswith("2 boxes")


def test_clipping_says_by_how_much(root):
    remarks, boxes = load(write_coco(root, coco_of([*BOXES, [60, 40, 7, 10], [-5, 0, 20, 20]])))
    assert boxes[4:] == [(60, 40, 64, 48), (0, 0, 15, 20)]
    assert "2 boxes leave their image" in remarks["boxes clipped"]
    assert "by 4 pixels at the median, 5 at most" in remarks["boxes clipped"]


def test_rounding_is_no_repair(root):
    assert not load(write_coco(root, coco_of([*BOXES, [60, 40, 4.001, 8]])))[0]


def test_dropped_boxes_are_counted(root):
    remarks, boxes = load(write_coco(root, coco_of([*BOXES, [9, 9, 0, 5], [70, 5, 9, 9]])))
    assert boxes == KEEP and remarks["boxes dropped"].startswith("2 boxes")


def test_corners_in_place_of_sizes_are_an_error(root):
    with pytest.raises(DatasetError, match=r"toy.json: 3 of 4 .*x0, y0, x1, y1") as caught:
        load(write_coco(root, coco_of(KEEP)))
    assert "Write x1 - x0 and y1 - y0" in str(caught.value)


def test_a_few_that_leave_are_a_warning_if_all_fit_as_corners(root):
    corners = [(2, 3, 9, 12), (1, 1, 20, 30), (4, 2, 30, 20), (30, 20, 60, 44)]
    remarks, _ = load(write_coco(root, coco_of(corners)))
    assert "1 of 4 boxes leave their image" in remarks["boxes as written"]


def test_sizes_in_place_of_corners_are_an_error(root, voc):
    write_xml(root / "toy/xml/a.xml", [("dog", box) for box in BOXES])
    write_xml(root / "toy/xml/b.xml", [("cat", BOXES[0])])
    with pytest.raises(DatasetError, match="a.xml.*look like. Write x . width"):
        load(voc)


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_normalised_coordinates_are_an_error(root, voc, kind):
    boxes = [(x / 64, y / 48, w / 64, h / 48) for x, y, w, h in BOXES]
    declaration = write_coco(root, coco_of(boxes))
    if kind == "voc":
        boxes = [(x0 / 64, y0 / 48, x1 / 64, y1 / 48) for x0, y0, x1, y1 in KEEP]
        write_xml(root / "toy/xml/a.xml", [("dog", box) for box in boxes])
        declaration = voc
    with pytest.raises(DatasetError, match="4 of . boxes have all coordinates within 0 and 1"):
        load(declaration)


def test_percentages_are_suspected(root):
    content = coco_of([[i, i, 85 - i, 90 - i] for i in range(12)])
    for image in content["images"]:
        image.update(width=640, height=480)
    declaration = write_coco(root, content)
    for name in ("a.jpg", "b.jpg"):
        write_image(root / "pictures" / name, 640, 480)
    assert "are they percentages" in load(declaration)[0]["boxes as written"]


def test_boxes_of_other_images_are_an_error(root):
    boxes = [[500 + x, y, w, h] for x, y, w, h in BOXES]
    with pytest.raises(DatasetError, match="4 of 4 boxes lie wholly outside"):
        load(write_coco(root, coco_of(boxes)))


def test_most_boxes_that_leave_are_a_warning(root):
    boxes = [[-20, 5, 40, 20], [-9, 5, 60, 20], [50, 30, 40, 40], BOXES[2]]
    remarks, _ = load(write_coco(root, coco_of(boxes)))
    assert "3 of 4 boxes leave their image" in remarks["boxes as written"]
    assert "3 boxes leave" in remarks["boxes clipped"]


def test_copies_are_counted_and_kept(root):
    remarks, boxes = load(write_coco(root, coco_of([*BOXES, BOXES[0], BOXES[0]])))
    assert len(boxes) == 6 and remarks["boxes repeated"].startswith("2 annotations repeat")


def test_more_objects_than_are_detected(root):
    declaration = write_coco(root, coco_of(BOXES))
    remarks = load(declaration, detections=3)[0]
    text = "1 images have more objects than TEST.DETECTIONS_PER_IMAGE"
    assert text in remarks["crowded images"] and "4 objects at most" in remarks["crowded images"]
    assert "crowded images" not in load(declaration, detections=4)[0]


@pytest.mark.parametrize("size", [(128, 96), (48, 64), (65, 48), (64.5, 48)])
def test_another_size_than_the_files_is_an_error(root, size):
    content = coco_of(BOXES)
    content["images"][0].update(width=size[0], height=size[1])
    words = f"1 of 2 images differ .*a.jpg is 64x48, annotated as {size[0]:g}x{size[1]:g}"
    with pytest.raises(DatasetError, match=words) as caught:
        load(write_coco(root, content))
    assert ("Width and height are swapped" in str(caught.value)) == (size == (48, 64))


def test_voc_image_of_another_size_is_an_error(root, voc):
    write_image(root / "toy/jpg/a.jpg", width=32, height=40)
    with pytest.raises(DatasetError, match="a.jpg is 32x40, annotated as 64x48"):
        load(voc)


def test_voc_without_the_size_of_its_image_is_read_and_remarked_on(root, voc):
    write_xml(root / "toy/xml/a.xml", [("dog", (1, 1, 64, 48)), ("cat", (5, 5, 9, 9))], 0, 0)
    remarks, boxes = load(voc)
    assert boxes[0] == (0, 0, 64, 48) and "a.xml" in remarks["image sizes"]


def _save_turned(path, size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_photos_annotated_unturned_are_an_error(root, orientation):
    declaration = write_coco(root, coco_of(BOXES))
    # The file is 64 x 48, as is stated; it is read as 48 x 64.
    _save_turned(root / "pictures/a.jpg", (64, 48), orientation)
    with pytest.raises(DatasetError, match="turned by their EXIF tag.*annotated unturned"):
        load(declaration)


@pytest.mark.parametrize("orientation, count", [(1, 0), (2, 1), (3, 1), (4, 1), (6, 0)])
def test_photos_whose_size_does_not_tell_are_remarked_on(root, orientation, count):
    declaration = write_coco(root, coco_of(BOXES))
    size = (48, 64) if orientation == 6 else (64, 48)
    _save_turned(root / "pictures/a.jpg", size, orientation)
    remarks = load(declaration)[0]
    assert ("turned photos" in remarks) == bool(count), remarks


@pytest.mark.parametrize("box", [(0, 5, 20, 30), (5, 0, 20, 30)])
def test_voc_counted_from_0_is_remarked_on_and_a_key_decides(root, voc, box):
    write_xml(root / "toy/xml/a.xml", [("dog", box), ("cat", (10, 10, 30, 40))])
    remarks, boxes = load(voc)
    assert "a.xml" in remarks["counted from 0"] and "b.xml" not in remarks["counted from 0"]
    assert boxes[1] == (9, 9, 30, 40)
    DatasetCatalog.remove("toy")
    remarks, boxes = load({**voc, "COUNT_FROM": 0})
    assert not remarks and boxes == [box, (10, 10, 30, 40)]


def test_voc_counted_from_1_is_not_remarked_on(voc):
    assert not load(voc)[0]


@pytest.mark.parametrize("value", [2, "0", True])
def test_count_from_is_0_or_1(voc, value):
    with pytest.raises(DatasetError, match="COUNT_FROM to 1 or 0"):
        load({**voc, "COUNT_FROM": value})


def test_a_large_set_is_judged_by_shares():
    from d2kd.data.datasets.suspicion import suspect

    rng = np.random.default_rng(0)
    low = rng.uniform(0, 500, (2000, 2))
    boxes = np.concatenate([low, rng.uniform(5, 640 - low)], axis=1)
    sizes = np.full((2000, 2), 640.0)
    assert suspect(boxes, sizes, corners=False) is None
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    assert suspect(corners, sizes, corners=True) is None
    assert suspect(corners, sizes, corners=False).fatal
    assert suspect(boxes, sizes, corners=True).fatal
    assert suspect(boxes / 640, sizes, corners=False).fatal


def test_boxes_of_images_that_were_enlarged_are_suspected(root):
    half = [[x / 2, y / 2, w / 2, h / 2] for x, y, w, h in BOXES * 3]
    # No two alike.
    written = [[x + 0.1 * i, y, w, h] for i, (x, y, w, h) in enumerate(half)]
    remarks, _ = load(write_coco(root, coco_of(written)))
    assert "all 12 boxes end within 0.5" in remarks["boxes as written"]
    remarks, _ = load(write_coco(root, coco_of(written[:9]), "few.json"), name="few")
    assert not remarks


def test_an_image_file_that_is_listed_twice_is_remarked_on(root):
    content = coco_of(BOXES)
    content["images"][1]["file_name"] = "a.jpg"
    remarks, _ = load(write_coco(root, content))
    assert remarks["images listed twice"].startswith("1 images have the file of another one")
