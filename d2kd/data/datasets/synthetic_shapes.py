# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The synthetic shapes set in COCO format, generated on first use: d2kd_shapes_{train,val,test}.

It lies under ``$DETECTRON2_DATASETS`` (default: ``./datasets``) or, where that is read-only, under
``~/.cache/d2kd``. A change to what is drawn must raise VERSION, which starts a new folder.
"""

import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from iopath.common.file_io import file_lock

from .dataset_root import dataset_root, is_writable
from .synthetic_images import CLASSES, IMAGE_SIZE, Shape, draw_picture

__all__ = [
    "FOLDER",
    "SPLITS",
    "VERSION",
    "generate",
    "picture_rng",
    "register_shapes",
    "shapes_folder",
]

VERSION = 2
# Split -> number of images; the order of the splits is part of their random seed.
SPLITS = {"train": 1000, "val": 300, "test": 500}
FOLDER = Path("d2kd_shapes") / f"v{VERSION}"

logger = logging.getLogger(__name__)


def picture_rng(split: str, index: int) -> np.random.Generator:
    """The random stream of one picture: independent of every other picture."""
    return np.random.default_rng([VERSION, list(SPLITS).index(split), index])


def _coco_annotation(shape: Shape, image_id: int, annotation_id: int) -> dict:
    """One shape as a COCO annotation; the category ids are those of CLASSES plus 1."""
    x0, y0, x1, y1 = (round(value, 2) for value in shape.box)
    width, height = round(x1 - x0, 2), round(y1 - y0, 2)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": shape.category + 1,
        "bbox": [x0, y0, width, height],
        "area": round(width * height, 2),
        "iscrowd": 0,
    }


def _write_split(folder: Path, split: str, count: int) -> None:
    """Write ``<folder>/<split>/*.jpg`` and ``<folder>/annotations/<split>.json``."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(count):
        picture, shapes = draw_picture(picture_rng(split, index))
        name = f"{index:06d}.jpg"
        if not cv2.imwrite(str(folder / split / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise OSError(f"Could not write {folder / split / name}; is the disk full?")
        side = IMAGE_SIZE
        images.append({"id": index + 1, "file_name": name, "width": side, "height": side})
        for shape in shapes:
            annotations.append(_coco_annotation(shape, index + 1, len(annotations) + 1))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def generate(folder: Path, splits: dict[str, int] = SPLITS) -> None:
    """Write the whole set into a folder that must not exist; it appears complete or not at all.

    Safe against other processes doing the same: one writes, the others wait for it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(folder)):
        if folder.is_dir():
            return
        start = time.perf_counter()
        # print, as this runs before anybody has set up logging, and the user waits for it.
        total = sum(splits.values())
        print(f"Drawing the {total} images of d2kd_shapes in {folder} ...", end=" ", flush=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for split, count in splits.items():
                _write_split(unfinished, split, count)
            unfinished.chmod(0o755)  # mkdtemp's folders are private to their owner
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        print(f"done in {time.perf_counter() - start:.1f} s.", flush=True)


def shapes_folder() -> Path:
    """The folder of the generated set, generated now if it is not there yet."""
    cache = Path(os.path.expanduser("~/.cache/d2kd"))
    candidates = [root / FOLDER for root in (dataset_root(), cache)]
    for folder in candidates:
        if folder.is_dir():
            return folder
    target = candidates[0] if is_writable(dataset_root()) else candidates[1]
    generate(target)
    return target


def _load_shapes(split: str) -> list[dict]:
    """One split in Detectron2's standard format, boxes in pixels."""
    folder = shapes_folder()
    name = f"d2kd_shapes_{split}"
    return load_coco_json(str(folder / "annotations" / f"{split}.json"), str(folder / split), name)


def register_shapes() -> None:
    """Register the three splits in Detectron2's catalogs, which generates nothing yet.

    No json_file is set: COCOEvaluator converts what is loaded, so that the folder may be chosen,
    and the set drawn, at first use.
    """
    for split in SPLITS:
        name = f"d2kd_shapes_{split}"
        DatasetCatalog.register(name, lambda split=split: _load_shapes(split))
        MetadataCatalog.get(name).set(
            thing_classes=list(CLASSES), evaluator_type="coco", voc_ap50=True
        )
