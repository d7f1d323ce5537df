# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Writes small data sets, and configs that declare them."""

import json

import numpy as np
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from d2kd.config.defaults import add_d2kd_config

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>
</bndbox></object>"""


def write_image(path, width=64, height=48):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(path)


def write_xml(path, objects, width=64, height=48):
    """objects: (name, (xmin, ymin, xmax, ymax)) or with a third entry, difficult."""
    items = [OBJECT.format(name=o[0], box=o[1], difficult=int(len(o) > 2)) for o in objects]
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>\n{size}\n" + "\n".join(items) + "\n</annotation>")


def coco_content():
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48},
            {"id": 3, "file_name": "b.jpg", "width": 64, "height": 48},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 5, 20, 30]},
            {"id": 2, "image_id": 3, "category_id": 5, "bbox": [0, 0, 64, 48]},
        ],
        "categories": [{"id": 90, "name": "ant"}, {"id": 5, "name": "bee"}],
    }


def write_coco(root, content, name="toy.json"):
    """Write the JSON and its images; returns the declaration."""
    for image in ("a.jpg", "b.jpg"):
        write_image(root / "pictures" / image)
    (root / name).write_text(json.dumps(content, indent=1))
    return {"FORMAT": "coco", "ANNOTATIONS": name, "IMAGES": "pictures"}


def make_cfg(train=(), test=(), **custom):
    """A config that declares the sets given by name."""
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.DATASETS.CUSTOM = CfgNode(
        {
            name: CfgNode(value) if isinstance(value, dict) else value
            for name, value in custom.items()
        }
    )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    return cfg
