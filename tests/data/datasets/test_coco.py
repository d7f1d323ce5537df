# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""COCO-format data from a declaration, and what is refused."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.data import register_custom_datasets
from d2kd.utils.errors import DatasetError
from tests.common.toy_sets import coco_content, make_cfg, write_coco


def load(declaration):
    register_custom_datasets(make_cfg(train=["toy"], toy=declaration))
    return DatasetCatalog.get("toy")


def test_ids_need_not_be_contiguous(root):
    first, second = load(write_coco(root, coco_content()))
    # Categories in the order of their ids, images too.
    assert MetadataCatalog.get("toy").thing_classes == ["bee", "ant"]
    assert (first["image_id"], second["image_id"]) == (3, 7)
    assert first["file_name"] == str(root / "pictures/b.jpg")
    assert first["annotations"][0]["category_id"] == 0
    assert second["annotations"][0]["category_id"] == 1
    assert second["annotations"][0]["bbox"] == [10, 5, 30, 35]


def test_declared_classes_set_the_order(root):
    second = load({**write_coco(root, coco_content()), "CLASSES": ["wasp", "ant", "bee"]})[1]
    assert second["annotations"][0]["category_id"] == 1


def test_masks_and_crowds_are_kept(root):
    content = coco_content()
    polygon = [[10, 5, 30, 5, 30, 35]]
    content["annotations"][0].update(segmentation=polygon, iscrowd=1)
    item = load(write_coco(root, content))[1]["annotations"][0]
    assert item["segmentation"] == polygon and item["iscrowd"] == 1


def test_degenerate_boxes_are_dropped(root, caplog):
    content = coco_content()
    content["annotations"].append(
        {"id": 3, "image_id": 7, "category_id": 90, "bbox": [10, 5, 0, 30]}
    )
    assert len(load(write_coco(root, content))[1]["annotations"]) == 1
    assert "toy: 1 boxes" in caplog.text and "a.jpg" in caplog.text


def test_malformed_json_is_named_with_its_line(root):
    declaration = write_coco(root, coco_content())
    path = root / "toy.json"
    path.write_text(path.read_text().replace('"id": 7,', '"id": 7', 1))
    with pytest.raises(DatasetError, match=r"toy\.json:5: malformed JSON"):
        load(declaration)


def test_truncated_and_foreign_json(root):
    declaration = write_coco(root, coco_content())
    path = root / "toy.json"
    for content, words in ((b"\xff\xfe\x00", "not UTF-8"), (b"[]", "is an object"), (b"", ":1:")):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match="toy.json") as caught:
            load(declaration)
        assert words in str(caught.value)


def _annotation(**values):
    return lambda content: content["annotations"][0].update(values)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (_annotation(image_id=8), ["id 1", "unknown image_id 8"]),
        (_annotation(category_id=6), ["id 1", "unknown category_id 6", "[5, 90]"]),
        (_annotation(bbox=[1, 2, 3]), ["id 1", "bbox", "[1, 2, 3]"]),
        (_annotation(bbox=[1, 2, 3, float("nan")]), ["id 1", "bbox"]),
        (_annotation(bbox=None), ["id 1", "bbox"]),
        (_annotation(ignore=1), ["id 1", "iscrowd"]),
        (_annotation(id=2), ["duplicate id 2 in 'annotations'"]),
        (lambda c: c["images"][0].update(id=3), ["duplicate id 3 in 'images'"]),
        (lambda c: c["images"][0].pop("width"), ["images[0]", "width"]),
        (lambda c: c["annotations"][1].pop("category_id"), ["annotations[1]", "category_id"]),
        (lambda c: c["categories"][0].update(name="bee"), ["same name"]),
        (lambda c: c.update(annotations=[]), ["'annotations' must be a list that is not empty"]),
        (lambda c: c.pop("categories"), ["'categories' must be a list"]),
        (lambda c: c["images"][0].update(file_name="c.jpg"), ["c.jpg", "not there", "IMAGES"]),
    ],
)
def test_bad_input_is_named(root, spoil, words):
    content = coco_content()
    spoil(content)
    with pytest.raises(DatasetError) as caught:
        load(write_coco(root, content))
    assert all(word in str(caught.value) for word in ["toy.json", *words]), str(caught.value)
