# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A tiny data set with everything that Detectron2's zoo configs read: boxes to maps of classes."""

import pickle
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

__all__ = ["read_from", "write_images"]

SIZE, IMAGES, KEYPOINTS, SEGMENTS = (96, 112), 4, 17, 54


def write_images(folder: Path) -> list[dict]:
    """Draw images, maps of classes and proposals; their records, without class numbers."""
    rng, (height, width) = np.random.default_rng(0), SIZE
    records, proposals = [], []
    for number in range(IMAGES):
        image, segments = folder / f"{number}.png", folder / f"{number}_segments.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(image)
        Image.fromarray(rng.integers(0, SEGMENTS, SIZE, dtype=np.uint8)).save(segments)
        boxes = [_box(rng) for _ in range(3)]
        records.append(
            {
                **{"file_name": str(image), "sem_seg_file_name": str(segments)},
                **{"image_id": number, "height": height, "width": width},
                "annotations": [_annotation(*box) for box in boxes],
            }
        )
        proposals.append(np.array(boxes + [_box(rng) for _ in range(3)], dtype=np.float32))
    content = {"ids": list(range(IMAGES)), "boxes": proposals, "bbox_mode": 0}
    content["objectness_logits"] = [np.zeros(len(x)) for x in proposals]
    (folder / "proposals.pkl").write_bytes(pickle.dumps(content))
    return records


def _box(rng: np.random.Generator) -> list[float]:
    """Corners of a box, 24 to 48 pixels long."""
    low = rng.integers(0, 44, 2)
    return [*low.astype(float), *(low + rng.integers(24, 49, 2)).astype(float)]


def _annotation(x0: float, y0: float, x1: float, y1: float) -> dict:
    steps = np.linspace(0.1, 0.9, KEYPOINTS)
    points = np.stack([x0 + steps * (x1 - x0), y0 + steps * (y1 - y0), np.full(KEYPOINTS, 2)], 1)
    return {
        **{"bbox": [x0, y0, x1, y1], "bbox_mode": 0, "iscrowd": 0},
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        "keypoints": points.flatten().tolist(),
    }


def read_from(cfg: CfgNode, folder: Path, records: list[dict], classes: int) -> None:
    """Let a config read these images, small, two at a time, with so many classes."""
    name = f"zoo_{classes}"
    if name not in DatasetCatalog:
        for i, record in enumerate(records):
            for j, item in enumerate(record["annotations"]):
                item = {**item, "category_id": (3 * i + j) % classes}
                record["annotations"][j] = item
        copies = [{**x, "annotations": list(x["annotations"])} for x in records]
        DatasetCatalog.register(name, lambda: [dict(x) for x in copies])
        MetadataCatalog.get(name).set(
            thing_classes=[f"class {i}" for i in range(classes)],
            keypoint_names=[str(i) for i in range(KEYPOINTS)],
            keypoint_flip_map=[],
        )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    if cfg.MODEL.LOAD_PROPOSALS:
        cfg.DATASETS.PROPOSAL_FILES_TRAIN = (str(folder / "proposals.pkl"),)
        cfg.DATASETS.PROPOSAL_FILES_TEST = ()
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 2
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, cfg.INPUT.CROP.ENABLED = "choice", False
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (SIZE[0],), SIZE[1]
