# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Masks and keypoints that the detector is trained on: there, named, and able to be flipped."""

import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from pycocotools import mask as mask_utils

from d2kd.data import register_custom_datasets
from d2kd.data.datasets.masks import mask_extent
from d2kd.utils.errors import DatasetError
from tests.common.toy_sets import coco_content, make_cfg, write_coco

POLYGON = [[10, 5, 30, 5, 30, 35]]
RLE = {"counts": [480, 48, 2544], "size": [48, 64]}
NAMES = ["nose", "left_eye", "right_eye"]
POINTS = [12, 6, 2, 15, 6, 1, 0, 0, 0]


def register(root, content, *opts, **keys):
    declaration = {**write_coco(root, content), **keys}
    cfg = make_cfg(train=["toy"], toy=declaration)
    cfg.merge_from_list(list(opts))
    register_custom_datasets(cfg)
    return cfg


def with_masks(*masks):
    content = coco_content()
    for item, mask in zip(content["annotations"], masks):
        item["segmentation"] = mask
    return content


MASKS = ("MODEL.MASK_ON", True)


@pytest.mark.parametrize("mask", [None, [], [[10, 5, 30, 35]], {**RLE, "size": [64, 48]}], ids=str)
def test_objects_without_masks_are_named(root, mask):
    with pytest.raises(DatasetError) as caught:
        register(root, with_masks(POLYGON, mask), *MASKS)
    words = ["toy.json", "MODEL.MASK_ON", "1 of 2 objects", "b.jpg, annotation 2"]
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    "masks",
    [
        [[[0.1, 0.1, 0.5, 0.1, 0.5, 0.7]], [[0.0, 0.0, 1.0, 0.0, 1.0, 1.0]]],
        [[[40, 5, 60, 5, 60, 35]], [[0, 0, 3, 0, 3, 3]]],
    ],
    ids=["normalised", "elsewhere"],
)
def test_masks_that_lie_elsewhere_than_their_boxes_are_refused(root, masks):
    with pytest.raises(DatasetError, match="toy.json: the masks of 2 of 2 objects lie elsewhere"):
        register(root, with_masks(*masks), *MASKS)


def test_a_run_length_encoding_has_the_extent_of_its_mask():
    runs, box = mask_utils.frPyObjects(RLE, 48, 64), (10, 0, 11, 48)
    assert mask_extent(runs) == box
    assert mask_extent([[10, 0, 11, 0, 11, 48], [10, 3, 10, 5, 10, 4]]) == box


def test_masks_are_not_needed_where_nobody_asks(root):
    register(root, with_masks(POLYGON, None))
    assert len(DatasetCatalog.get("toy")) == 2


def test_crowds_and_dropped_boxes_need_no_mask(root):
    content = with_masks(POLYGON, None)
    content["annotations"][1]["iscrowd"] = 1
    further = {"id": 3, "image_id": 7, "category_id": 5, "bbox": [5, 5, 0, 9]}
    content["annotations"].append(further)
    register(root, content, *MASKS)


def test_run_length_masks_need_the_bitmask_format(root):
    content = with_masks(POLYGON, RLE)
    with pytest.raises(DatasetError, match="MASK_FORMAT.*b.jpg, annotation 2.*to 'bitmask'"):
        register(root, content, *MASKS)
    cfg = register(root, content, *MASKS, "INPUT.MASK_FORMAT", "bitmask")
    mapper = DatasetMapper(cfg, True)
    for record in DatasetCatalog.get("toy"):
        assert mapper(record)["instances"].gt_masks.tensor.any()


def test_voc_has_no_masks(root, voc):
    cfg = make_cfg(train=["toy"], toy=voc)
    cfg.MODEL.MASK_ON = True
    with pytest.raises(DatasetError, match="toy/xml: MODEL.MASK_ON.*a.jpg, annotation 1"):
        register_custom_datasets(cfg)


def test_a_test_set_needs_no_masks(root):
    cfg = make_cfg(test=["toy"], toy=write_coco(root, coco_content()))
    cfg.MODEL.MASK_ON = True
    register_custom_datasets(cfg)


def with_keypoints(names=NAMES, points=POINTS):
    content = coco_content()
    for item in content["annotations"]:
        item["keypoints"] = list(points)
    if names:
        content["categories"][0]["keypoints"] = names
    return content


POSE = ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 3)


def test_names_and_mirror_come_from_the_file(root):
    cfg = register(root, with_keypoints(), *POSE)
    metadata = MetadataCatalog.get("toy")
    assert metadata.keypoint_names == NAMES
    assert metadata.keypoint_flip_map == [("left_eye", "right_eye")]
    sample = DatasetMapper(cfg, True)(DatasetCatalog.get("toy")[0])
    assert sample["instances"].gt_keypoints.tensor.shape == (1, 3, 3)


def test_a_key_declares_what_the_file_does_not(root):
    content = with_keypoints(names=None)
    with pytest.raises(DatasetError, match="names the keypoints of 'toy'.*KEYPOINT_NAMES to 3"):
        register(root, content, *POSE)
    keys = {"KEYPOINT_NAMES": ["a", "b", "c"], "KEYPOINT_FLIP": [["b", "c"]]}
    register(root, content, *POSE, **keys)
    assert MetadataCatalog.get("toy").keypoint_flip_map == [("b", "c")]


def test_flips_without_a_mirror_are_refused(root):
    content = with_keypoints(names=["a", "b", "c"])
    with pytest.raises(DatasetError, match="INPUT.RANDOM_FLIP is 'horizontal'.*KEYPOINT_FLIP"):
        register(root, content, *POSE)
    cfg = register(root, content, *POSE, "INPUT.RANDOM_FLIP", "none")
    assert DatasetMapper(cfg, True)(DatasetCatalog.get("toy")[0])["instances"].has("gt_keypoints")


def test_an_empty_mirror_says_that_every_keypoint_stays(root):
    cfg = register(root, with_keypoints(names=["a", "b", "c"]), *POSE, KEYPOINT_FLIP=[])
    for _ in range(8):
        DatasetMapper(cfg, True)(DatasetCatalog.get("toy")[0])


@pytest.mark.parametrize(
    "pairs", [[["left_eye"]], "left_eye", [["nose", "nose"]], [["a", "nose"]], [[1, 2]],
              [["nose", "left_eye"], ["nose", "right_eye"]]],
)  # fmt: skip
def test_a_mirror_is_pairs_of_known_names(root, pairs):
    with pytest.raises(DatasetError, match="DATASETS.CUSTOM.toy.KEYPOINT_FLIP"):
        register(root, with_keypoints(), *POSE, KEYPOINT_FLIP=pairs)


def test_another_number_of_keypoints_is_an_error(root):
    with pytest.raises(DatasetError, match="NUM_KEYPOINTS is 17, but 'toy' has 3 .*Set it to 3"):
        register(root, with_keypoints(), "MODEL.KEYPOINT_ON", True)


@pytest.mark.parametrize("points", [[], None, [1, 2, 2]])
def test_objects_without_their_keypoints_are_named(root, points):
    content = with_keypoints()
    content["annotations"][0]["keypoints"] = points
    with pytest.raises(DatasetError, match="1 of 2 objects do not have 3.*a.jpg, annotation 1"):
        register(root, content, *POSE)


def test_images_that_are_all_left_out_for_want_of_keypoints(root):
    content = with_keypoints(points=[0] * 9)
    with pytest.raises(DatasetError, match="MIN_KEYPOINTS_PER_IMAGE .1."):
        register(root, content, *POSE)
    register(root, content, *POSE, "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE", 0)


@pytest.mark.parametrize("names", [["a", "a", "b"], "abc", [1, 2, 3]])
def test_keypoint_names_of_the_file_are_checked(root, names):
    with pytest.raises(DatasetError, match="toy.json: 'keypoints'"):
        register(root, with_keypoints(names=names), *POSE)
