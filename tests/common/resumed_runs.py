# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Short trainings in which everything is random that can be, and what they end with."""

import copy
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image

from d2kd.engine import DistillTrainer
from tests.common.helpers import LEVELS, K, distill_cfg, plain_cfg

MIXED = "mixed_train"
# Augmentation of size and side, and a factor that decays.
OPTIONS = ["DATASETS.TRAIN", (MIXED,), "INPUT.MIN_SIZE_TRAIN", (48, 56, 64)]
OPTIONS += ["SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.BASE_LR", 0.001]
DENSE = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", LEVELS]
DENSE += ["MODEL.RETINANET.NUM_CLASSES", K, "MODEL.RETINANET.NUM_CONVS", 1]


def write_images(folder: Path, images=7):
    """Noise of 64 x 48 and 48 x 64 pixels."""
    rng = np.random.default_rng(1)
    for i in range(images):
        height, width = (48, 64) if i % 2 else (64, 48)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}_{height}_{width}.png")


def register_mixed(folder: Path):
    """Register MIXED in this process, if it is not."""
    records = []
    for i, path in enumerate(sorted(folder.glob("*.png"))):
        height, width = map(int, path.stem.split("_")[1:])
        low = np.random.default_rng(i).integers(0, 20, (2, 2))
        boxes = np.concatenate([low, low + 10 + 8 * np.arange(2)[:, None]], axis=1).tolist()
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": (i + j) % K}
            for j, box in enumerate(boxes)
        ]
        size = {"height": height, "width": width}
        records.append({"file_name": str(path), "image_id": i, "annotations": annotations, **size})
    if MIXED in DatasetCatalog:
        DatasetCatalog.remove(MIXED)
    DatasetCatalog.register(MIXED, lambda: copy.deepcopy(records))


def make_cfg(teacher, folder, *opts):
    """teacher: as of distill_cfg, or None for a run without distillation."""
    opts = [*OPTIONS, "OUTPUT_DIR", str(folder), *opts]
    return distill_cfg(teacher, *opts) if teacher else plain_cfg(*opts)


def start(cfg, seed):
    """A trainer as train_net.py makes it, which goes on if there is a checkpoint."""
    seed_all_rng(seed)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=True)
    return trainer


def resume_from(checkpoint: Path, folder: Path):
    """A folder in which a run stands that was killed after it had written a checkpoint."""
    folder.mkdir()
    shutil.copy(checkpoint, folder)
    (folder / "last_checkpoint").write_text(checkpoint.name)


def final_state(folder: Path):
    """All that the last checkpoint of a run holds: weights, optimizer, order and streams."""
    return torch.load(folder / "model_final.pth", weights_only=True)


def differences(found, expected, name=""):
    """Names of what is not bit-equal in two nested states."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or list(found) != list(expected):
            return [name + " (keys)"]
        return [x for k in expected for x in differences(found[k], expected[k], f"{name}.{k}")]
    if isinstance(expected, (list, tuple)):
        if len(found) != len(expected):
            return [name + " (length)"]
        pairs = enumerate(zip(found, expected))
        return [x for i, (a, b) in pairs for x in differences(a, b, f"{name}.{i}")]
    if isinstance(expected, torch.Tensor):
        return [] if torch.equal(found, expected) else [name]
    return [] if found == expected else [name]


def quiet():
    """For child processes: nothing but warnings."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)


def new_seed():
    """A resumed run must not depend on what its process was seeded by."""
    return random.SystemRandom().randrange(2**20)
