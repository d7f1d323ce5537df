# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""DATASETS.CUSTOM itself: keys, agreement of the classes, registration, number of classes."""

import copy

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.data import check_num_classes, num_classes_key, register_custom_datasets
from d2kd.utils.errors import DatasetError
from tests.common.toy_sets import coco_content, make_cfg, write_coco, write_image, write_xml


def test_declared_in_yaml(root, voc, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": {"toy": voc}, "TEST": ["toy"]}}))
    cfg = get_cfg()
    cfg.DATASETS.CUSTOM = CfgNode(new_allowed=True)
    cfg.merge_from_file(str(path))
    cfg.freeze()
    register_custom_datasets(cfg)
    assert len(DatasetCatalog.get("toy")) == 2
    assert MetadataCatalog.get("toy").evaluator_type == "coco"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"ANOTATIONS": "x"}, ["DATASETS.CUSTOM.toy.ANOTATIONS", "Did you mean 'ANNOTATIONS'?"]),
        ({"FORMAT": "yolo"}, ["DATASETS.CUSTOM.toy.FORMAT", "coco", "voc", "'yolo'"]),
        ({"FORMAT": "coco"}, ["Remove DATASETS.CUSTOM.toy.SPLIT"]),
        ({"IMAGES": 3}, ["DATASETS.CUSTOM.toy.IMAGES", "must be a path"]),
        ({"CLASSES": "dog"}, ["DATASETS.CUSTOM.toy.CLASSES", "list of different names"]),
        ({"CLASSES": ["dog", "dog"]}, ["DATASETS.CUSTOM.toy.CLASSES", "list of different names"]),
    ],
)
def test_bad_keys_are_named(voc, change, words):
    with pytest.raises(DatasetError) as caught:
        register_custom_datasets(make_cfg(train=["toy"], toy={**voc, **change}))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_declaration_must_be_a_mapping():
    with pytest.raises(DatasetError, match="DATASETS.CUSTOM.toy must be a mapping"):
        register_custom_datasets(make_cfg(train=["toy"], toy="toy.json"))


def test_misspelt_name(voc):
    with pytest.raises(DatasetError, match="names 'tpy', which .* Did you mean 'toy'?"):
        register_custom_datasets(make_cfg(train=["tpy"], toy=voc))


def test_unused_sets_are_left_alone(voc):
    absent = {"FORMAT": "coco", "ANNOTATIONS": "absent.json", "IMAGES": "absent"}
    register_custom_datasets(make_cfg(train=["toy"], toy=voc, other=absent))
    assert "toy" in DatasetCatalog and "other" not in DatasetCatalog


def test_same_set_twice_is_one_and_another_an_error(voc):
    register_custom_datasets(make_cfg(train=["toy"], toy=voc))
    register_custom_datasets(make_cfg(train=["toy"], toy=copy.deepcopy(voc)))
    with pytest.raises(DatasetError, match="DATASETS.CUSTOM.toy: .* already registered"):
        register_custom_datasets(
            make_cfg(train=["toy"], toy={**voc, "CLASSES": ["dog", "cat", "cow"]})
        )


def test_name_of_a_stock_set_is_taken(voc):
    with pytest.raises(DatasetError, match="already registered"):
        register_custom_datasets(make_cfg(train=["lvis_v1_train"], lvis_v1_train=voc))


def _second_set(root, names):
    write_image(root / "toy/jpg/c.jpg")
    write_xml(root / "toy/xml/c.xml", [(name, (1, 1, 20, 20)) for name in names])
    (root / "toy/second.txt").write_text("c\n")


def test_training_classes_hold_for_the_test_set(root, voc):
    _second_set(root, ["dog"])
    second = {**voc, "SPLIT": "toy/second.txt"}
    register_custom_datasets(make_cfg(train=["toy"], test=["second"], toy=voc, second=second))
    assert MetadataCatalog.get("second").thing_classes == ["cat", "dog"]
    assert DatasetCatalog.get("second")[0]["annotations"][0]["category_id"] == 1


def test_class_of_the_test_set_alone_is_an_error(root, voc):
    _second_set(root, ["dog", "cow"])
    second = {**voc, "SPLIT": "toy/second.txt"}
    with pytest.raises(DatasetError, match="c.xml: unknown class 'cow'.*training sets"):
        register_custom_datasets(make_cfg(train=["toy"], test=["second"], toy=voc, second=second))


def test_training_sets_add_up(root, voc):
    _second_set(root, ["dog", "cow"])
    second = {**voc, "SPLIT": "toy/second.txt"}
    register_custom_datasets(make_cfg(train=["toy", "second"], toy=voc, second=second))
    assert MetadataCatalog.get("toy").thing_classes == ["cat", "cow", "dog"]
    assert MetadataCatalog.get("second").thing_classes == ["cat", "cow", "dog"]


def test_coco_files_that_number_classes_differently(root):
    content = coco_content()
    train = write_coco(root, content, "train.json")
    content["categories"] = [{"id": 90, "name": "bee"}, {"id": 5, "name": "ant"}]
    test = write_coco(root, content, "test.json")
    cfg = make_cfg(train=["first"], test=["second"], first=train, second=test)
    register_custom_datasets(cfg)
    assert MetadataCatalog.get("second").thing_classes == ["bee", "ant"]
    ids = [r["annotations"][0]["category_id"] for r in DatasetCatalog.get("second")]
    assert ids == [1, 0]


def test_stated_classes_must_agree(root, voc):
    second = {**voc, "CLASSES": ["dog", "cat"]}
    first = {**voc, "CLASSES": ["cat", "dog"]}
    with pytest.raises(DatasetError, match="same classes in the same order, but 'toy' has"):
        register_custom_datasets(make_cfg(train=["toy"], test=["second"], toy=first, second=second))


def test_custom_test_set_beside_a_stock_training_set(voc):
    # COCO has both classes, at its own indices.
    register_custom_datasets(make_cfg(train=["coco_2017_train"], test=["toy"], toy=voc))
    assert len(MetadataCatalog.get("toy").thing_classes) == 80
    assert DatasetCatalog.get("toy")[0]["annotations"][0]["category_id"] == 16


@pytest.mark.parametrize(
    "architecture, key",
    [
        ("GeneralizedRCNN", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("RetinaNet", "MODEL.RETINANET.NUM_CLASSES"),
        ("FCOS", "MODEL.FCOS.NUM_CLASSES"),
        ("GFL", "MODEL.GFL.NUM_CLASSES"),
    ],
)
def test_number_of_classes(voc, architecture, key):
    cfg = make_cfg(train=["toy"], test=["toy"], toy=voc)
    register_custom_datasets(cfg)
    section = key.split(".")[1]
    if section not in cfg.MODEL:
        cfg.MODEL[section] = CfgNode()
    cfg.MODEL[section].NUM_CLASSES = 2
    cfg.MODEL.META_ARCHITECTURE = architecture
    assert num_classes_key(cfg) == key
    check_num_classes(cfg)
    cfg.MODEL[section].NUM_CLASSES = 3
    with pytest.raises(DatasetError, match=f"'toy' has 2 classes .cat, dog.. Set {key} to 2"):
        check_num_classes(cfg)


def test_unknown_architecture_is_not_checked(voc):
    cfg = make_cfg(train=["toy"], toy=voc)
    register_custom_datasets(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SomethingElse"
    assert num_classes_key(cfg) is None
    check_num_classes(cfg)
