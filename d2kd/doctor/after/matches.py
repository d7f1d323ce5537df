# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Which detections of a test set are right: COCOeval's matching, once for every image.

Shape shorthand:
    I: images; D: detections of one class; G: objects of one class; T: IoU thresholds
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .evaluation_set import EvaluationSet

__all__ = ["SIZES", "Cell", "Matches", "Objects", "match_detections"]

# COCOeval's areas, in its order.
SIZES = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class Cell:
    """One class at one range of areas.

    Attributes:
        positives: (I,) objects to find in each image.
        images, hits: for each IoU threshold (D,) index of the image and bool, by falling score;
            detections that are ignored there are left out.
    """

    positives: np.ndarray
    images: list[np.ndarray]
    hits: list[np.ndarray]


@dataclass(frozen=True)
class Objects:
    """The objects of all classes that count, whatever their size, at IoU 0.5.

    Attributes:
        ids: (G,) of the annotations; classes: (G,) class index.
        scores: (G,) of the detection that matches; -1 where none does.
    """

    ids: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Matches:
    """What AP is computed from, for one detector on one test set.

    Attributes:
        classes: names.
        num_images: I.
        cells: (class index, size) -> Cell.
        objects: found or not.
        scores, hits: (D,) of the detections of all classes at IoU 0.5, in no order.
    """

    classes: tuple[str, ...]
    num_images: int
    cells: dict[tuple[int, str], Cell]
    objects: Objects
    scores: np.ndarray
    hits: np.ndarray


def match_detections(test_set: EvaluationSet, rows: list[dict[str, Any]], limit: int) -> Matches:
    """Match the detections of every image with its objects.

    Args:
        test_set: images and objects.
        rows: detections in the form of COCO's result files.
        limit: TEST.DETECTIONS_PER_IMAGE; at least 100 are taken, as in the evaluation.

    Raises:
        KeyError: a row is of an image or a category that the set does not have.
    """
    api = COCOeval(test_set.truth, _as_coco(test_set, rows), "bbox")
    api.params.maxDets = [max(100, limit)]
    with contextlib.redirect_stdout(io.StringIO()):
        api.evaluate()
    # One entry for each category in the order of ids, area and image.
    order, sizes, images = api.params.catIds, len(SIZES), len(api.params.imgIds)
    by_category = {
        category: api.evalImgs[i * sizes * images : (i + 1) * sizes * images]
        for i, category in enumerate(order)
    }
    cells, found = {}, []
    for index, category in enumerate(test_set.categories):
        # A class that the set's file does not have has no object and no match.
        entries = by_category.get(category, [None] * (sizes * images))
        for i, size in enumerate(SIZES):
            cells[index, size] = _cell(entries[i * images : (i + 1) * images])
        found.append(_objects(entries[:images], index))
    ids, classes, scores = (np.concatenate(x) for x in zip(*found))
    hits = np.concatenate([cells[i, "all"].hits[0] for i in range(len(test_set.classes))])
    of_hits = [_scores(by_category.get(c, [])[:images]) for c in test_set.categories]
    objects = Objects(ids, classes, scores)
    return Matches(test_set.classes, images, cells, objects, np.concatenate(of_hits), hits)


def _as_coco(test_set: EvaluationSet, rows: list[dict[str, Any]]) -> COCO:
    """COCO.loadRes without its prints; it also takes no detections at all."""
    images, categories = set(test_set.truth.imgs), set(test_set.categories)
    strange = [r for r in rows if r["image_id"] not in images or r["category_id"] not in categories]
    if strange:
        raise KeyError(f"a detection of image {strange[0]['image_id']!r}")
    api = COCO()
    annotations = [
        {**row, "id": i, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for i, row in enumerate(rows, 1)
    ]
    truth = test_set.truth.dataset
    api.dataset = {k: truth[k] for k in ("images", "categories")} | {"annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def _cell(entries: list[dict | None]) -> Cell:
    """Of one class and area, COCOeval's entry for each image."""
    positives = np.array([0 if e is None else int(np.sum(e["gtIgnore"] == 0)) for e in entries])
    there = [(i, e) for i, e in enumerate(entries) if e is not None and len(e["dtScores"])]
    if not there:
        none: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * 10
        return Cell(positives, none, [x.astype(bool) for x in none])
    scores = np.concatenate([e["dtScores"] for _, e in there])
    order = np.argsort(-scores, kind="mergesort")
    images = np.concatenate([np.full(len(e["dtScores"]), i) for i, e in there])[order]
    hits = np.concatenate([e["dtMatches"] > 0 for _, e in there], axis=1)[:, order]
    kept = np.concatenate([e["dtIgnore"] == 0 for _, e in there], axis=1)[:, order]
    return Cell(positives, [images[row] for row in kept], [h[row] for h, row in zip(hits, kept)])


def _scores(entries: list[dict | None]) -> np.ndarray:
    """Of the detections that count at IoU 0.5, in the order of ``_cell``."""
    there = [e for e in entries if e is not None and len(e["dtScores"])]
    if not there:
        return np.zeros(0)
    scores = np.concatenate([e["dtScores"] for e in there])
    order = np.argsort(-scores, kind="mergesort")
    kept = np.concatenate([e["dtIgnore"][0] == 0 for e in there])
    return scores[order][kept[order]]


def _objects(entries: list[dict | None], index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, class and matching score of the objects of one class."""
    ids, scores = [], []
    for entry in entries:
        if entry is None:
            continue
        by_id = dict(zip(entry["dtIds"], entry["dtScores"]))
        for i, (key, ignored) in enumerate(zip(entry["gtIds"], entry["gtIgnore"])):
            if not ignored:
                ids.append(key)
                scores.append(by_id.get(int(entry["gtMatches"][0][i]), -1.0))
    return np.array(ids, dtype=np.int64), np.full(len(ids), index), np.array(scores, dtype=float)
