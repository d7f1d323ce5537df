# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""COCO's metrics: as many detections as are asked for, the file's ids, and only annotated tasks."""

import json
import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2kd.data import register_custom_datasets
from d2kd.evaluation import build_evaluator
from d2kd.utils.errors import ConfigError, DatasetError
from tests.common.toy_sets import coco_content, make_cfg, write_coco, write_image

NUM_KEYPOINTS = 2
POINTS = [12.0, 8.0, 2, 20.0, 30.0, 2]


def perfect(record, **extra):
    """The ground truth of a record as predictions; extra fields are given as they are."""
    items = record["annotations"]
    instances = Instances((record["height"], record["width"]))
    boxes = [BoxMode.convert(i["bbox"], i["bbox_mode"], BoxMode.XYXY_ABS) for i in items]
    instances.pred_boxes = Boxes(torch.tensor(boxes).float().reshape(-1, 4))
    instances.scores = torch.linspace(1, 0.5, len(items))
    instances.pred_classes = torch.tensor([item["category_id"] for item in items])
    for name, make in extra.items():
        instances.set(name, make(len(items)))
    return {"instances": instances}


def masks(count):
    return torch.ones(count, 48, 64, dtype=torch.bool)


def keypoints(count):
    """As a detector gives them: half a pixel more than COCO's file."""
    points = torch.tensor(POINTS).reshape(1, NUM_KEYPOINTS, 3).repeat(count, 1, 1)
    points[..., :2] += 0.5
    return points


def run(evaluator, name, **extra):
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [perfect(record, **extra)])
    return evaluator.evaluate()


def evaluate(cfg, folder, **extra):
    register_custom_datasets(cfg)
    return run(build_evaluator(cfg, "toy", str(folder)), "toy", **extra)


def register_people(points=True):
    """Two records that stay in memory, as a user's Python registers them."""
    item = {"bbox": [10, 5, 30, 35], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    records = [
        {"file_name": f"{i}.png", "image_id": i, "height": 48, "width": 64}
        | {"annotations": [{**item, **({"keypoints": list(POINTS)} if points else {})}]}
        for i in range(2)
    ]
    DatasetCatalog.register("people", lambda: records)
    MetadataCatalog.get("people").set(thing_classes=["person"], evaluator_type="coco")
    return records


def keypoint_cfg(sigmas):
    cfg = make_cfg()
    cfg.MODEL.KEYPOINT_ON = True
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = NUM_KEYPOINTS
    cfg.TEST.KEYPOINT_OKS_SIGMAS = sigmas
    return cfg


def test_every_one_of_150_objects_counts(root, tmp_path):
    content = coco_content()
    content["annotations"] = [
        {"id": i + 1, "image_id": 7, "category_id": 90, "bbox": [4 * (i % 15), 4 * (i // 15), 3, 3]}
        for i in range(150)
    ]
    cfg = make_cfg(test=["toy"], toy=write_coco(root, content))
    cfg.TEST.DETECTIONS_PER_IMAGE = 1000
    assert evaluate(cfg, tmp_path / "out")["bbox"]["AP"] == pytest.approx(100)
    cfg.TEST.DETECTIONS_PER_IMAGE = 10  # the metric's limit is never below COCO's own
    assert evaluate(cfg, tmp_path / "10")["bbox"]["AP"] == pytest.approx(66.34, abs=0.01)


def test_results_carry_the_ids_of_the_users_file(root, tmp_path):
    content = coco_content()
    for item in content["annotations"]:
        item.update(iscrowd=0, area=item["bbox"][2] * item["bbox"][3])
    evaluate(make_cfg(test=["toy"], toy=write_coco(root, content)), tmp_path)
    path = str(tmp_path / "coco_instances_results.json")
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {(r["image_id"], r["category_id"]) for r in results} == {(7, 90), (3, 5)}
    truth = COCO(str(root / "toy.json"))
    coco = COCOeval(truth, truth.loadRes(path), "bbox")
    coco.evaluate(), coco.accumulate(), coco.summarize()
    assert coco.stats[0] == pytest.approx(1)
    converted = json.loads((tmp_path / "toy_coco_format.json").read_text())
    assert {c["name"]: c["id"] for c in converted["categories"]} == {"ant": 90, "bee": 5}


def test_a_class_of_other_sets_alone_gets_a_free_id(root, tmp_path):
    names = ["cow", "ant", "bee"]
    cfg = make_cfg(test=["toy"], toy=write_coco(root, coco_content()) | {"CLASSES": names})
    result = evaluate(cfg, tmp_path)
    metadata = MetadataCatalog.get("toy")
    assert metadata.thing_dataset_id_to_contiguous_id == {91: 0, 90: 1, 5: 2}
    assert result["bbox"]["AP-ant"] == result["bbox"]["AP-bee"] == pytest.approx(100)


def test_class_names_follow_their_ids_in_the_metrics(root, tmp_path):
    """ "ant" has the first index and the last id; only bees are found."""
    cfg = make_cfg(test=["toy"], toy=write_coco(root, coco_content()) | {"CLASSES": ["ant", "bee"]})
    register_custom_datasets(cfg)
    evaluator = build_evaluator(cfg, "toy", str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get("toy"):
        output = perfect(record)
        output["instances"] = output["instances"][output["instances"].pred_classes == 1]
        evaluator.process([record], [output])
    result = evaluator.evaluate()["bbox"]
    assert (result["AP-ant"], result["AP-bee"]) == (pytest.approx(0), pytest.approx(100))


def test_masks_and_keypoints_of_a_teacher_on_a_set_of_boxes(root, tmp_path):
    cfg = make_cfg(test=["toy"], toy=write_coco(root, coco_content()))
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = True
    result = evaluate(cfg, tmp_path, pred_masks=masks, pred_keypoints=keypoints)
    assert result["bbox"]["AP"] == pytest.approx(100) and set(result) == {"bbox", "voc"}


def test_masks_are_evaluated_where_every_object_has_one(root, tmp_path):
    content = coco_content()
    for item in content["annotations"]:
        item["segmentation"] = [[0, 0, 64, 0, 64, 48, 0, 48]]
        item["bbox"] = [0, 0, 64, 48]
    cfg = make_cfg(test=["toy"], toy=write_coco(root, content))
    assert evaluate(cfg, tmp_path, pred_masks=masks)["segm"]["AP"] == pytest.approx(100)


def test_keypoints_by_the_sigmas_of_the_config(root, tmp_path):
    register_people()

    def shifted(count):
        points = keypoints(count)
        points[..., 0] += 3
        return points

    found = {}
    for sigma in (0.01, 0.5):
        evaluator = build_evaluator(keypoint_cfg([sigma] * 2), "people", str(tmp_path))
        found[sigma] = run(evaluator, "people", pred_keypoints=shifted)["keypoints"]["AP"]
    assert found == {0.01: pytest.approx(0), 0.5: pytest.approx(100)}


@pytest.mark.parametrize("sigmas", [[], [0.1] * 3])
def test_sigmas_of_another_number_are_refused_at_once(root, tmp_path, sigmas):
    register_people()
    with pytest.raises(ConfigError, match="TEST.KEYPOINT_OKS_SIGMAS.* set it to 2 numbers"):
        build_evaluator(keypoint_cfg(sigmas), "people", str(tmp_path))


def test_conversion_does_not_move_the_keypoints_that_are_trained_on(root, tmp_path):
    records = register_people()
    build_evaluator(keypoint_cfg([0.1] * 2), "people", str(tmp_path))
    assert [r["annotations"][0]["keypoints"] for r in records] == [POINTS, POINTS]
    converted = json.loads((tmp_path / "people_coco_format.json").read_text())
    assert converted["annotations"][0]["keypoints"] == [11.5, 7.5, 2, 19.5, 29.5, 2]


def test_proposals_are_evaluated_by_their_recall(root, tmp_path):
    cfg = make_cfg(test=["toy"], toy=write_coco(root, coco_content()))
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    register_custom_datasets(cfg)
    evaluator = build_evaluator(cfg, "toy", str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get("toy"):
        truth = perfect(record)["instances"]
        proposals = Instances(truth.image_size, proposal_boxes=truth.pred_boxes)
        proposals.objectness_logits = truth.scores
        evaluator.process([record], [{"proposals": proposals}])
    assert evaluator.evaluate()["box_proposals"]["AR@100"] == pytest.approx(100)


def test_a_set_without_names_or_file_is_refused(root, tmp_path):
    write_image(root / "a.jpg")
    DatasetCatalog.register("nameless", lambda: [])
    MetadataCatalog.get("nameless").evaluator_type = "coco"
    with pytest.raises(DatasetError, match="'nameless' has no class names"):
        build_evaluator(make_cfg(), "nameless", str(tmp_path))
    MetadataCatalog.get("nameless").json_file = str(root / "gone.json")
    with pytest.raises(DatasetError, match="no annotation file .*gone.json"):
        build_evaluator(make_cfg(), "nameless", str(tmp_path))


def test_an_annotation_with_id_0_can_be_found(root, tmp_path):
    """pycocotools takes the id of what a detection matches as whether it matches."""
    content = coco_content()
    for number, item in enumerate(content["annotations"]):
        item.update(id=number, iscrowd=0, area=item["bbox"][2] * item["bbox"][3])
    write_coco(root, content)
    register_coco_instances("toy", {}, str(root / "toy.json"), str(root / "pictures"))
    results = run(build_evaluator(make_cfg(test=["toy"]), "toy", str(tmp_path)), "toy")
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_what_will_not_be_evaluated_is_said_before_training(root, tmp_path, caplog):
    cfg = make_cfg(test=["toy"], toy=write_coco(root, coco_content()))
    cfg.MODEL.MASK_ON = True
    register_custom_datasets(cfg)
    with caplog.at_level(logging.WARNING):
        build_evaluator(cfg, "toy", str(tmp_path))
    assert "segm will not be evaluated on 'toy'" in caplog.text
