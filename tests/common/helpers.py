# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Detectors, batches and a data set small enough for a test: 64 px, a few thousand weights."""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from PIL import Image

from d2kd.config.defaults import add_d2kd_config
from d2kd.modeling import Distiller, FrozenTeacher

K = 4
TRAIN_SET = "tiny_train"
LEVELS = ["p2", "p3", "p4", "p5", "p6"]
TEACHER_WIDTH = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.FPN.OUT_CHANNELS", 24]
_STUDENT = f"""
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  WEIGHTS: ""
  DEVICE: "cpu"
  PIXEL_STD: [57.0, 58.0, 59.0]
  BACKBONE: {{NAME: "build_resnet_fpn_backbone", FREEZE_AT: 0}}
  RESNETS:
    NORM: "BN"
    STEM_OUT_CHANNELS: 8
    RES2_OUT_CHANNELS: 16
    WIDTH_PER_GROUP: 4
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
  FPN: {{IN_FEATURES: ["res2", "res3", "res4", "res5"], OUT_CHANNELS: 16}}
  ANCHOR_GENERATOR: {{SIZES: [[8], [16], [32], [48], [64]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}}
  RPN:
    IN_FEATURES: {LEVELS}
    BATCH_SIZE_PER_IMAGE: 32
    PRE_NMS_TOPK_TRAIN: 100
    PRE_NMS_TOPK_TEST: 60
    POST_NMS_TOPK_TRAIN: 40
    POST_NMS_TOPK_TEST: 30
  ROI_HEADS:
    NAME: "StandardROIHeads"
    IN_FEATURES: {LEVELS[:4]}
    NUM_CLASSES: {K}
    BATCH_SIZE_PER_IMAGE: 16
  ROI_BOX_HEAD: {{NAME: "FastRCNNConvFCHead", NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 3}}
DATASETS: {{TRAIN: ["{TRAIN_SET}"], TEST: []}}
DATALOADER: {{NUM_WORKERS: 0}}
INPUT: {{MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 64, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 64}}
SOLVER: {{BASE_LR: 0.0001, WARMUP_ITERS: 0, IMS_PER_BATCH: 2, MAX_ITER: 3, STEPS: []}}
SEED: 1
VERSION: 2
"""


def plain_cfg(*opts):
    """A thin Faster R-CNN of R50 depth, K classes, no teacher."""
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_other_cfg(cfg.load_cfg(_STUDENT))
    cfg.merge_from_list(list(opts))
    return cfg


def distill_cfg(teacher, *opts):
    """The same as a student; teacher: the (yaml, checkpoint) paths that write_teacher gives."""
    names = ["DISTILL.ENABLED", True, "DISTILL.TEACHER.CONFIG_FILE", str(teacher[0])]
    return plain_cfg(*names, "DISTILL.TEACHER.WEIGHTS", str(teacher[1]), *opts)


def write_teacher(folder: Path, *opts, seed=7):
    """A wider detector's yaml and its (random) checkpoint as Detectron2 writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = plain_cfg(*TEACHER_WIDTH, *opts)
    torch.manual_seed(seed)
    model = spread(build_model(cfg))
    (folder / "teacher.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, folder / "teacher.pth")
    return folder / "teacher.yaml", folder / "teacher.pth"


def spread(model):
    """Random statistics and head weights, so that no two regions or classes are answered alike."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif "box_predictor" in name:
            tensor.normal_(0, 0.3)
    return model


def build_pair(*opts, seed=0):
    """A stock student, a copy of it, and a teacher of its own weights."""
    torch.manual_seed(seed)
    stock = build_model(plain_cfg(*opts)).train()
    student = build_model(plain_cfg(*opts))
    student.load_state_dict(copy.deepcopy(stock.state_dict()), strict=True)
    teacher = FrozenTeacher(spread(build_model(plain_cfg(*opts, *TEACHER_WIDTH))))
    return stock, student.train(), teacher


def make_batch(boxes=([[8, 12, 50, 60], [4, 4, 20, 30]], [[30, 20, 60, 44]]), seed=3):
    """One image for each list of boxes, of different sizes; classes 0, 1, ..."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for i, b in enumerate(boxes):
        size = (64, 64 + 16 * i)
        instances = Instances(size, gt_boxes=Boxes(torch.tensor(b, dtype=torch.float).view(-1, 4)))
        instances.gt_classes = torch.arange(len(b)) % K
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": 64, "width": size[1]})
    return batch


def unscaled(loss_module, step):
    """The simplest hook: the loss as it is."""
    return loss_module(step)


def build_distiller(cfg, seed=1):
    """A Distiller in training mode whose losses are computed by ``unscaled``."""
    torch.manual_seed(seed)
    distiller = Distiller(cfg).train()
    for name in distiller.distill_losses:
        distiller.register_loss_hook(name, unscaled)
    return distiller


def run(model, batch, seed=5):
    """The losses of a training forward, with the random sampling fixed."""
    torch.manual_seed(seed)
    with EventStorage():
        return model(batch)


def count_calls(*modules):
    """A list for each module that grows by the inputs of every call."""
    calls = [[] for _ in modules]
    for module, seen in zip(modules, calls):
        module.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs))
    return calls


def _draw_images(folder: Path, images: int):
    """Noise with two boxes an image: (path, boxes xyxy) of each, the files written."""
    rng = np.random.default_rng(0)
    for i in range(images):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        low = rng.integers(0, 30, (2, 2))
        yield path, np.concatenate([low, low + rng.integers(10, 34, (2, 2))], axis=1).tolist()


def register_train_set(folder: Path, images=8):
    """Register TRAIN_SET."""
    records = [
        {"file_name": str(path), "image_id": i, "height": 64, "width": 64}
        | {
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": (i + j) % K}
                for j, box in enumerate(boxes)
            ]
        }
        for i, (path, boxes) in enumerate(_draw_images(folder, images))
    ]
    DatasetCatalog.register(TRAIN_SET, lambda: copy.deepcopy(records))


def write_coco_set(folder: Path, images=4):
    """The same pictures as a COCO file; returns its declaration for DATASETS.CUSTOM."""
    content = {"images": [], "annotations": []}
    content["categories"] = [{"id": i + 1, "name": f"class {i}"} for i in range(K)]
    for i, (path, boxes) in enumerate(_draw_images(folder, images)):
        content["images"].append({"id": i, "file_name": path.name, "width": 64, "height": 64})
        for j, (x0, y0, x1, y1) in enumerate(boxes):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            ids = {"id": 2 * i + j + 1, "image_id": i, "category_id": (i + j) % K + 1}
            content["annotations"].append({**ids, **box})
    (folder / "boxes.json").write_text(json.dumps(content))
    return {"FORMAT": "coco", "ANNOTATIONS": str(folder / "boxes.json"), "IMAGES": str(folder)}
