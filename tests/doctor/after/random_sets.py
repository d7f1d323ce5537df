# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Random test sets and detections for COCO's metrics, and pycocotools' own answer."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2kd.doctor.after.evaluation_set import EvaluationSet

CATEGORIES = (7, 3)


def _box(rng):
    x, y, w, h = rng.uniform(0, 60), rng.uniform(0, 60), *rng.uniform(4, 120, 2)
    return [float(v) for v in (x, y, w, h)]


def as_api(images, annotations, categories=CATEGORIES):
    api = COCO()
    api.dataset = {
        "images": [{"id": i, "width": 200, "height": 200} for i in images],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def random_set(rng, images=9):
    """A EvaluationSet with boxes of all sizes; some are crowds, one image has none."""
    annotations = []
    for image in range(10, 10 + images - 1):
        for _ in range(rng.integers(1, 5)):
            box = _box(rng)
            ids = {"id": len(annotations) + 1, "image_id": image}
            ids["category_id"] = int(rng.choice(CATEGORIES))
            crowd = int(rng.random() < 0.1)
            annotations.append({**ids, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd})
    api = as_api(range(10, 10 + images), annotations)
    return EvaluationSet("toy", api, ("seven", "three"), CATEGORIES, "coco")


def random_detections(rng, test_set):
    """Objects moved a little, and boxes anywhere; no two scores are equal."""
    rows = []
    for item in test_set.truth.dataset["annotations"]:
        if rng.random() < 0.8:
            box = [float(v + d) for v, d in zip(item["bbox"], rng.normal(0, 1.5, 4))]
            box[2:] = [max(v, 1.0) for v in box[2:]]
            category = item["category_id"] if rng.random() < 0.9 else int(rng.choice(CATEGORIES))
            rows.append({"image_id": item["image_id"], "category_id": category, "bbox": box})
    for image in test_set.images:
        for _ in range(rng.integers(0, 4)):
            category = int(rng.choice(CATEGORIES))
            rows.append({"image_id": image, "category_id": category, "bbox": _box(rng)})
    scores = rng.permutation(len(rows)) / len(rows)
    return [{**row, "score": float(s)} for row, s in zip(rows, scores)]


def coco_stats(test_set, rows, counts):
    """COCOeval's precision (IoU, recall, class, size), each image as often as it counts.

    An independent way: a set in which the images are really repeated.
    """
    images, truth, found = [], [], []
    for image, count in zip(test_set.images, counts):
        for _ in range(count):
            name = len(images) + 1
            images.append(name)
            for item in test_set.truth.imgToAnns[image]:
                truth.append({**item, "image_id": name, "id": len(truth) + 1})
            for row in rows:
                if row["image_id"] == image:
                    area = row["bbox"][2] * row["bbox"][3]
                    extra = {"image_id": name, "id": len(found) + 1, "area": area, "iscrowd": 0}
                    found.append({**row, **extra})
    api = COCOeval(as_api(images, truth), as_api(images, found), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        api.evaluate()
        api.accumulate()
    return api.eval["precision"][..., -1]


def _mean(values):
    values = values[values > -1]
    return values.mean() if values.size else np.nan


def coco_scores(test_set, rows, counts):
    """The names of d2kd.doctor.after.scores, from COCOeval's precision."""
    precision = coco_stats(test_set, rows, counts)
    # COCOeval orders classes by their ids.
    column = {c: i for i, c in enumerate(sorted(CATEGORIES))}
    found = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
    }
    found |= {name: _mean(precision[..., i]) for i, name in enumerate(("APs", "APm", "APl"), 1)}
    for name, category in zip(test_set.classes, test_set.categories):
        found[f"AP {name}"] = _mean(precision[:, :, column[category], 0])
    return found
