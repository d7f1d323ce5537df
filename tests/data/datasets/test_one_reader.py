# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A COCO file is read once: as Detectron2 reads a clean one, and no box is lost of another."""

import copy
import json
import os
import subprocess
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from pycocotools import mask as mask_utils

from d2kd.data import register_custom_datasets
from d2kd.data.datasets.coco import read_coco
from d2kd.evaluation import build_evaluator
from d2kd.utils.errors import DatasetError
from tests.common import ROOT
from tests.common.toy_sets import coco_content, make_cfg, write_coco

POLYGON = [10.0, 5.0, 30.0, 5.0, 30.0, 35.0]
# Runs of a 64 x 48 mask, column by column: none, a column of 48, none.
RUNS = {"counts": [480, 48, 2544], "size": [48, 64]}
# Many runs, long ones behind short ones and the reverse: their differences have both signs.
MANY_RUNS = {"counts": [480, 3, 1000, 7, 41, 1, 90, 650, 2, 798], "size": [48, 64]}
RLE = {**RUNS, "counts": mask_utils.frPyObjects(MANY_RUNS, 48, 64)["counts"].decode()}


def load(declaration):
    register_custom_datasets(make_cfg(train=["toy"], toy=declaration))
    return DatasetCatalog.get("toy")


def items_of(declaration):
    return {x["file_name"].split("/")[-1]: x["annotations"] for x in load(declaration)}


def clean_content():
    """Polygons, both run-length encodings, keypoints, crowds, and an image without objects."""
    content = coco_content()
    content["images"].append({"id": 11, "file_name": "a.jpg", "width": 64, "height": 48})
    boxes = [[10, 5, 20, 30], [10, 0, 1, 48], [10.5, 0.25, 1, 47.75], [2, 3, 40, 20]]
    further = [
        {"segmentation": [POLYGON, [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8]], "iscrowd": 0},
        {"segmentation": RUNS, "iscrowd": 1},
        {"segmentation": RLE, "keypoints": [1, 2, 2, 0, 0, 0], "area": 3},
        {"keypoints": [5, 6, 1, 7.5, 8, 2], "iscrowd": 0, "num_keypoints": 2},
    ]
    content["annotations"] += [
        {"id": 10 + i, "image_id": 7 - 4 * (i % 2), "category_id": (90, 5)[i // 2], "bbox": box}
        | values
        for i, (box, values) in enumerate(zip(boxes, further))
    ]
    return content


def test_records_are_those_of_load_coco_json(root):
    declaration = write_coco(root, clean_content())
    expected = load_coco_json(str(root / "toy.json"), str(root / "pictures"), "stock_toy")
    found = load(declaration)
    assert len(found) == len(expected) == 3
    for record in expected:
        for item in record["annotations"]:
            item["bbox"] = BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS)
            item["bbox_mode"] = BoxMode.XYXY_ABS
            item.setdefault("iscrowd", 0)
    assert found == expected


def test_a_byte_order_mark_is_no_fault(root):
    declaration = write_coco(root, coco_content())
    text = (root / "toy.json").read_bytes()
    (root / "toy.json").write_bytes(b"\xef\xbb\xbf" + text)
    assert sum(map(len, items_of(declaration).values())) == 2


def test_any_locale_reads_the_same(root):
    content = coco_content()
    content["categories"][0]["name"] = "fourmi géante"
    write_coco(root, content)
    (root / "toy.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    code = (
        "import pathlib, sys\n"
        "from d2kd.data.datasets.coco import read_coco\n"
        "read = read_coco(pathlib.Path(sys.argv[1]), pathlib.Path('.'))\n"
        "print(ascii(read.classes), sum(len(x.objects) for x in read.images))"
    )
    settings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(root / "toy.json")],
        env={**os.environ, **settings}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == r"('bee', 'fourmi g\xe9ante') 2"


@pytest.mark.parametrize(
    "mask",
    [
        [[10, 5, 30, 35]],
        [[10, 5, 30, 35, 7]],
        [[]],
        {"counts": [5, 6], "size": [48, 64]},
        {"counts": [], "size": [48, 64]},
        {"counts": [-480, 960, 2592], "size": [48, 64]},
        {"counts": "nonsense", "size": [48, 64]},
        {"counts": None, "size": [48, 64]},
        {"counts": RLE["counts"], "size": [64, 48]},
        {"counts": [2**70, 1], "size": [2**35, 2**35]},
    ],
    ids=str,
)
def test_a_mask_that_cannot_be_used_loses_no_box(root, caplog, mask):
    content = coco_content()
    content["annotations"][0]["segmentation"] = mask
    (item,) = items_of(write_coco(root, content))["a.jpg"]
    assert item["bbox"] == [10, 5, 30, 35] and "segmentation" not in item
    assert "toy: 1 objects have a mask that cannot be used" in caplog.text
    assert "a.jpg (annotation 1)" in caplog.text


def test_a_polygon_without_the_list_around_it_is_one(root):
    content = coco_content()
    content["annotations"][0]["segmentation"] = POLYGON
    assert items_of(write_coco(root, content))["a.jpg"][0]["segmentation"] == [POLYGON]


@pytest.mark.parametrize("key", ["segmentation", "keypoints", "iscrowd", "area", "ignore"])
def test_null_is_as_good_as_absent(root, caplog, key):
    content = coco_content()
    expected = copy.deepcopy(items_of(write_coco(root, content)))
    DatasetCatalog.remove("toy")
    content["annotations"][0][key] = None
    assert items_of(write_coco(root, content)) == expected and not caplog.records


@pytest.mark.parametrize("value", [[], {}])
def test_an_empty_mask_is_none(root, value):
    content = coco_content()
    content["annotations"][0].update(segmentation=value, keypoints=[])
    item = items_of(write_coco(root, content))["a.jpg"][0]
    assert "segmentation" not in item and "keypoints" not in item


def test_reading_leaves_the_keypoints_of_the_next_reading_alone(root):
    write_coco(root, clean_content())
    first, second = (read_coco(root / "toy.json", root / "pictures") for _ in range(2))
    assert first == second


def test_nothing_but_crowds_is_an_error(root):
    content = coco_content()
    for item in content["annotations"]:
        item["iscrowd"] = 1
    with pytest.raises(DatasetError, match="toy.json: all 2 annotations are iscrowd"):
        load(write_coco(root, content))


def test_crowds_beside_dropped_boxes_are_an_error(root):
    content = coco_content()
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"] = [5, 5, 0, 0]
    with pytest.raises(DatasetError, match="toy.json: not one box with an extent is left"):
        load(write_coco(root, content))


def test_nothing_but_difficult_objects_is_an_error(root, voc):
    (root / "toy/all.txt").write_text("b\n")
    with pytest.raises(DatasetError, match="xml: all 1 annotations are marked <difficult>"):
        load(voc)


@pytest.mark.parametrize("name", ["sub\\a.jpg", "C:\\data\\a.jpg"])
def test_backslashes_are_named_as_the_fault(root, name):
    content = coco_content()
    content["images"][0]["file_name"] = name
    declaration = write_coco(root, content)
    (root / "pictures/sub").mkdir()
    (root / "pictures/a.jpg").rename(root / "pictures/sub/a.jpg")
    with pytest.raises(DatasetError, match="has backslashes, which separate folders") as caught:
        load(declaration)
    assert ("pictures/sub/a.jpg is there: write /" in str(caught.value)) == name.startswith("sub")


def test_backslashes_in_voc(root, voc):
    path = root / "toy/xml/a.xml"
    text = path.read_text().replace("<size>", "<filename>sub\\a.jpg</filename><size>")
    path.write_text(text)
    (root / "toy/jpg/a.jpg").unlink()
    with pytest.raises(DatasetError, match="a.jpg is not there.*has backslashes"):
        load(voc)
    (root / "toy/all.txt").write_text("sub\\a\n")
    with pytest.raises(DatasetError, match="all.txt lists.*has backslashes"):
        load(voc)


def test_voc_without_a_split_reads_the_whole_folder(root, voc):
    del voc["SPLIT"]
    (root / "toy/xml/._a.xml").write_bytes(b"what macOS leaves")
    (root / "toy/xml/notes.txt").write_text("")
    assert [record["image_id"] for record in load(voc)] == ["a", "b"]


def test_voc_without_a_split_and_without_files(root, voc):
    del voc["SPLIT"]
    for name in "ab":
        (root / f"toy/xml/{name}.xml").unlink()
    with pytest.raises(DatasetError, match="toy/xml: there is no .xml file"):
        load(voc)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_what_windows_programs_write_is_read(root, tmp_path, encoding):
    """PowerShell redirects to UTF-16; the evaluator reads the file's category ids too."""
    declaration = write_coco(root, coco_content())
    path = root / "toy.json"
    path.write_bytes(path.read_text().replace("ant", "ameisenbär").encode(encoding))
    cfg = make_cfg(test=["toy"], toy=declaration)
    register_custom_datasets(cfg)
    build_evaluator(cfg, "toy", str(tmp_path))
    metadata = MetadataCatalog.get("toy")
    assert metadata.thing_classes == ["bee", "ameisenbär"]
    assert metadata.thing_dataset_id_to_contiguous_id == {5: 0, 90: 1}
