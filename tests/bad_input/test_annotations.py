# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Annotation files: malformed values and strange boxes; more in tests/data."""

import logging
import sys

import pytest
from detectron2.data import DatasetCatalog

from d2kd.data import register_custom_datasets
from d2kd.utils.errors import DatasetError
from tests.common.toy_sets import coco_content, make_cfg, write_coco, write_image


def load(declaration):
    register_custom_datasets(make_cfg(train=["toy"], toy=declaration))
    return DatasetCatalog.get("toy")


def _change(group, **values):
    return lambda content: content[group][0].update(values)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (_change("images", id=[7]), ["images[0]", "'id'", "[7]"]),
        (_change("images", id=None), ["images[0]", "'id'", "None"]),
        (_change("images", id="7"), ["some ids in 'images' are numbers and some are strings"]),
        (_change("images", file_name=5), ["images[0]", "'file_name'", "a string"]),
        (_change("images", file_name=" "), ["images[0]", "'file_name'", "not empty"]),
        (_change("images", width="64"), ["images[0]", "'width'", "'64'"]),
        (_change("images", height=0), ["images[0]", "'height'", "1 or more"]),
        (_change("images", height=None), ["images[0]", "'height'", "None"]),
        (_change("annotations", id={}), ["annotations[0]", "'id'"]),
        (_change("annotations", image_id=[7]), ["annotations[0]", "'image_id'"]),
        (_change("annotations", category_id={"id": 5}), ["annotations[0]", "'category_id'"]),
        (_change("annotations", bbox="1 2 3 4"), ["id 1", "bbox", "'1 2 3 4'"]),
        (_change("annotations", bbox=[1, 2, "3", 4]), ["id 1", "bbox"]),
        (_change("annotations", bbox={"x": 1}), ["id 1", "bbox"]),
        (_change("annotations", bbox=[1, 2, 3, True]), ["id 1", "bbox"]),
        (_change("annotations", bbox=[1, 2, 10**400, 4]), ["id 1", "bbox", "[1, 2, 1000"]),
        (_change("images", width=10**400), ["images[0]", "'width'", "not 1000", "...000"]),
        (_change("annotations", iscrowd="no"), ["id 1", "iscrowd must be 0 or 1", "'no'"]),
        (_change("annotations", segmentation=5), ["id 1", "segmentation"]),
        (_change("annotations", segmentation=[[1, "2"]]), ["id 1", "segmentation"]),
        (_change("annotations", segmentation={"size": 5}), ["id 1", "segmentation"]),
        (_change("annotations", keypoints=[1, 2]), ["id 1", "keypoints"]),
        (_change("categories", id="90"), ["categories[0]", "'id'", "an integer"]),
        (_change("categories", name=None), ["categories[0]", "'name'", "a string"]),
        (lambda c: c["annotations"].append(None), ["annotations[2]", "lacks"]),
        (lambda c: c["images"].append("a.jpg"), ["images[2]", "lacks"]),
        (lambda c: c.update(images={}), ["'images' must be a list"]),
        (lambda c: c.update(annotations=[]), ["'annotations' must be a list that is not empty"]),
        (lambda c: c["categories"].append(c["categories"][0]), ["duplicate id 90 in 'categories'"]),
    ],
)
def test_coco_values(root, spoil, words):
    content = coco_content()
    spoil(content)
    with pytest.raises(DatasetError) as caught:
        load(write_coco(root, content))
    assert all(word in str(caught.value) for word in ["toy.json", *words]), str(caught.value)


def test_coco_nested_too_deeply(root):
    declaration = write_coco(root, coco_content())
    (root / "toy.json").write_text("[" * 200_000)
    with pytest.raises(DatasetError, match="toy.json.*malformed JSON"):
        load(declaration)


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="Python converts any")
def test_coco_integers_that_python_does_not_convert(root):
    content = coco_content()
    content["annotations"][1].update(bbox=[1, 2, 3, 1234567], area=1234567)
    declaration = write_coco(root, content)
    text = (root / "toy.json").read_text()
    (root / "toy.json").write_text(text.replace("1234567", "7" * 5000))
    with pytest.raises(DatasetError, match="toy.json: malformed JSON: .*digits"):
        load(declaration)


def test_boxes_outside_are_clipped_or_dropped_with_a_warning(root, caplog):
    content = coco_content()
    content["annotations"][0]["bbox"] = [50, 40, 100, 100]
    content["annotations"].append(
        {"id": 3, "image_id": 7, "category_id": 5, "bbox": [70, 5, 20, 30]}
    )
    with caplog.at_level(logging.WARNING):
        image = load(write_coco(root, content))[1]
    assert [item["bbox"] for item in image["annotations"]] == [[50, 40, 64, 48]]
    assert "toy: 1 boxes without width or height inside their image were dropped" in caplog.text


@pytest.mark.parametrize("absolute", [False, True])
def test_a_path_that_leaves_the_folder_is_warned_of(root, caplog, absolute):
    write_image(root / "elsewhere" / "a.jpg")
    content = coco_content()
    name = str(root / "elsewhere/a.jpg") if absolute else "../elsewhere/a.jpg"
    content["images"][0]["file_name"] = name
    with caplog.at_level(logging.WARNING):
        load(write_coco(root, content))
    assert "toy: 1 image files lie outside the declared image folder: " in caplog.text
    assert "elsewhere/a.jpg" in caplog.text


def test_a_link_that_leaves_the_folder_is_warned_of(root, caplog):
    write_image(root / "elsewhere" / "a.jpg")
    declaration = write_coco(root, coco_content())
    name = root / declaration["IMAGES"] / coco_content()["images"][0]["file_name"]
    name.unlink()
    name.symlink_to(root / "elsewhere" / "a.jpg")
    with caplog.at_level(logging.WARNING):
        load(declaration)
    assert "toy: 1 image files lie outside the declared image folder: " in caplog.text


def test_a_data_root_that_is_a_link_is_none_that_is_left(root, caplog, tmp_path, monkeypatch):
    declaration = write_coco(root, coco_content())
    link = tmp_path / "link"
    link.symlink_to(root, target_is_directory=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(link))
    # One of its images is named by where it is, the other by the link.
    content = coco_content()
    first = content["images"][0]
    first["file_name"] = str(root.resolve() / declaration["IMAGES"] / first["file_name"])
    write_coco(root, content)
    with caplog.at_level(logging.WARNING):
        load(declaration)
    assert "outside" not in caplog.text


def test_a_voc_split_that_leaves_the_folder_is_warned_of(root, voc, caplog):
    write_image(root / "toy" / "c.jpg")
    (root / "toy/xml/b.xml").rename(root / "toy/c.xml")
    (root / "toy/all.txt").write_text("a\n../c\n")
    load(voc)
    assert "outside the declared image folder" in caplog.text and "../c.jpg" in caplog.text


def test_a_split_that_is_no_text(root, voc):
    (root / "toy/all.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DatasetError, match="all.txt is no UTF-8 text"):
        load(voc)


def test_an_external_entity_is_never_read(root, voc, monkeypatch):
    secret = root / "secret"
    secret.write_text("dog")
    text = (root / "toy/xml/a.xml").read_text().replace("dog", "&leak;")
    head = f'<!DOCTYPE a [<!ENTITY leak SYSTEM "file://{secret}">]>'
    (root / "toy/xml/a.xml").write_text(head + text)
    with pytest.raises(DatasetError, match="a.xml:1: declares the XML entity 'leak'"):
        load(voc)
    # A document type definition elsewhere is not fetched either.
    (root / "toy/xml/a.xml").write_text(f'<!DOCTYPE a SYSTEM "file://{secret}">' + text)
    with pytest.raises(DatasetError, match="a.xml"):
        load(voc)
