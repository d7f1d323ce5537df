# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""VOC-layout data from a declaration, and what is refused."""

import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from d2kd.data import register_custom_datasets
from d2kd.utils.errors import DatasetError
from tests.common.toy_sets import make_cfg, write_image, write_xml

ENTITY = """<?xml version="1.0"?>
<!DOCTYPE a [<!ENTITY secret SYSTEM "file:///etc/hostname">]>
<annotation><size><width>64</width><height>48</height></size>&secret;</annotation>"""


def load(declaration, **others):
    register_custom_datasets(make_cfg(train=["toy"], toy=declaration, **others))
    return DatasetCatalog.get("toy")


def test_boxes_classes_and_sizes(root, voc):
    first, second = load(voc)
    assert MetadataCatalog.get("toy").thing_classes == ["cat", "dog"]
    assert first["file_name"] == str(root / "toy/jpg/a.jpg") and first["image_id"] == "a"
    assert (first["width"], first["height"]) == (64, 48)
    dog, cat = first["annotations"]
    # 1-based inclusive pixels: the box (1, 1, W, H) is the whole image.
    assert dog["bbox"] == [0, 0, 64, 48] and cat["bbox"] == [10, 5, 20, 30]
    assert dog["bbox_mode"] == BoxMode.XYXY_ABS
    assert (dog["category_id"], cat["category_id"]) == (1, 0)
    assert (dog["iscrowd"], second["annotations"][0]["iscrowd"]) == (0, 1)


def test_files_as_windows_tools_write_them(root, voc):
    (root / "toy/all.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert [record["image_id"] for record in load(voc)] == ["a", "b"]


def test_absolute_paths(root, voc):
    paths = {key: str(root / value) for key, value in voc.items() if key != "FORMAT"}
    assert len(load({"FORMAT": "voc", **paths})) == 2


def test_image_named_by_the_annotation(root, voc):
    (root / "toy/jpg/a.jpg").rename(root / "toy/jpg/other.jpg")
    path = root / "toy/xml/a.xml"
    path.write_text(path.read_text().replace("<size>", "<filename>other.jpg</filename><size>"))
    assert load(voc)[0]["file_name"] == str(root / "toy/jpg/other.jpg")


def test_degenerate_boxes_are_dropped_with_one_warning(root, voc, caplog):
    degenerate = [("cat", (9, 9, 9, 9)), ("cat", (9, 9, 20, 9)), ("cat", (30, 9, 20, 19))]
    outside = [("cat", (70, 5, 90, 20)), ("dog", (-5, 40, 20, 90))]
    write_xml(root / "toy/xml/a.xml", degenerate + outside)
    write_xml(root / "toy/xml/b.xml", [("cat", (9, 9, 9, 9)), ("dog", (5, 5, 30, 30))])
    with caplog.at_level(logging.WARNING):
        first, second = load(voc)
    # The box from 30 to 20 has its corners swapped: columns 20 to 30 are its pixels.
    assert [item["bbox"] for item in first["annotations"]] == [[19, 8, 30, 19], [0, 39, 20, 48]]
    assert len(second["annotations"]) == 1
    swapped, clipped, dropped = [record.getMessage() for record in caplog.records]
    assert "toy: 4 boxes" in dropped and "a.jpg" in dropped and "b.jpg" in dropped
    assert "toy: 1 boxes have a negative width" in swapped and "a.jpg" in swapped
    assert "toy: 1 boxes leave their image" in clipped and "42 at most" in clipped


def test_size_is_that_of_the_rotated_photograph(root, voc):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (48, 64)).save(root / "toy/jpg/a.jpg", exif=exif)
    first = load(voc)[0]
    assert (first["width"], first["height"]) == (64, 48)


def test_image_outside_the_folder_is_remarked(root, voc, caplog):
    write_image(root / "elsewhere.jpg")
    (root / "toy/jpg/a.jpg").unlink()
    path = root / "toy/xml/a.xml"
    path.write_text(
        path.read_text().replace("<size>", "<filename>../../elsewhere.jpg</filename><size>")
    )
    load(voc)
    assert "outside the declared image folder" in caplog.text and "elsewhere.jpg" in caplog.text


def _write(name, text):
    return lambda root, voc: (root / "toy" / name).write_text(text)


def _replace(name, old, new):
    def change(root, voc):
        path = root / "toy" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def _unlink(name):
    return lambda root, voc: (root / "toy" / name).unlink()


@pytest.mark.parametrize(
    "spoil, error, words",
    [
        (_replace("xml/a.xml", "</object>", ""), DatasetError, ["a.xml:", "malformed XML"]),
        (_write("xml/a.xml", ""), DatasetError, ["a.xml:1", "malformed XML"]),
        (_write("xml/a.xml", ENTITY), DatasetError, ["a.xml:2", "entity 'secret'"]),
        (_replace("xml/a.xml", "size>", "sighs>"), DatasetError, ["a.xml", "malformed"]),
        (_write("xml/a.xml", "<annotation/>"), DatasetError, ["a.xml", "no <size>"]),
        (_replace("xml/a.xml", "<width>64</width>", ""), DatasetError, ["a.xml", "<width>"]),
        (_replace("xml/a.xml", "<xmin>1<", "<xmin>one<"), DatasetError, ["a.xml", "xmin", "'one'"]),
        (_replace("xml/a.xml", "<xmin>1<", "<xmin>nan<"), DatasetError, ["a.xml", "xmin", "'nan'"]),
        (_replace("xml/a.xml", "<name>dog</name>", ""), DatasetError, ["a.xml", "<name>"]),
        (_unlink("xml/b.xml"), DatasetError, ["b.xml", "all.txt", "'b'", "SPLIT"]),
        (_unlink("jpg/b.jpg"), DatasetError, ["b.jpg", "b.xml", "IMAGES"]),
        (_write("jpg/b.jpg", "no image"), DatasetError, ["b.jpg", "cannot be read"]),
        (_write("all.txt", "\n"), DatasetError, ["all.txt", "no image"]),
        (_write("all.txt", "a\nb\na\n"), DatasetError, ["all.txt", "'a' more than once"]),
        (
            lambda root, voc: voc.pop("IMAGES"),
            DatasetError,
            ["DATASETS.CUSTOM.toy", "lacks", "IMAGES"],
        ),
        (
            lambda root, voc: voc.update(SPLIT="toy/al.txt"),
            DatasetError,
            ["DATASETS.CUSTOM.toy.SPLIT", "al.txt", "DETECTRON2_DATASETS"],
        ),
        (
            lambda root, voc: voc.update(CLASSES=["cat", "dgo"]),
            DatasetError,
            ["a.xml", "unknown class 'dog'", "Did you mean 'dgo'?"],
        ),
    ],
)
def test_bad_input_is_named(root, voc, spoil, error, words):
    spoil(root, voc)
    with pytest.raises(error) as caught:
        load(voc)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_missing_folder(voc):
    voc["IMAGES"] = "toy/jgp"
    with pytest.raises(DatasetError, match="DATASETS.CUSTOM.toy.IMAGES: there is no folder"):
        load(voc)


def test_no_annotations_at_all(root, voc):
    for name in ("a", "b"):
        write_xml(root / "toy/xml" / f"{name}.xml", [])
    with pytest.raises(DatasetError, match="not one <object>"):
        load(voc)


def test_nothing_but_degenerate_boxes(root, voc):
    for name in ("a", "b"):
        write_xml(root / "toy/xml" / f"{name}.xml", [("dog", (9, 9, 9, 9))])
    with pytest.raises(DatasetError, match="not one box"):
        load(voc)


def test_entities_within_are_refused_too(root, voc):
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
    (root / "toy/xml/a.xml").write_text(bomb)
    with pytest.raises(DatasetError, match="entity 'b'"):
        load(voc)


@pytest.mark.parametrize("text, crowd", [("True", 1), ("1", 1), ("false", 0), ("0", 0), ("", 0)])
def test_difficult_as_programs_write_it(root, voc, text, crowd):
    path = root / "toy/xml/a.xml"
    path.write_text(path.read_text().replace("<difficult>0", f"<difficult>{text}", 1))
    assert [item["iscrowd"] for item in load(voc)[0]["annotations"]] == [crowd, 0]


def test_difficult_that_says_neither_is_refused(root, voc):
    path = root / "toy/xml/a.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>maybe"))
    with pytest.raises(DatasetError, match="a.xml: <difficult> must be 0 or 1, not 'maybe'"):
        load(voc)


def test_of_two_images_of_one_name_the_stated_one_is_read(root, voc):
    write_image(root / "toy/jpg/a.png")
    assert load(voc)[0]["file_name"] == str(root / "toy/jpg/a.jpg")
    path = root / "toy/xml/a.xml"
    path.write_text(path.read_text().replace("<size>", "<filename>a.png</filename><size>"))
    assert DatasetCatalog.get("toy")[0]["file_name"] == str(root / "toy/jpg/a.png")
