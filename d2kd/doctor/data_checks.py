# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checks of the data: found, sampled, boxes inside, classes met, nothing twice."""

import math
import random
from collections import Counter
from itertools import chain

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..data import check_num_classes, check_registered_sets, register_custom_datasets
from ..data.mapper import why_unreadable
from ..utils.errors import DatasetError
from ..utils.text import first_few
from .annotation_checks import check_annotations, count_repairs
from .finding import Finding, Status, error, ok, warning
from .record_checks import check_records

__all__ = ["check_data"]

SAMPLED = 24
# The longest published schedules show an image a few hundred times.
MANY_EPOCHS = 300


def check_data(cfg: CfgNode) -> list[Finding]:
    """Every check of the training sets; the first alone where they cannot be loaded."""
    try:
        remarks = register_custom_datasets(cfg)
        check_num_classes(cfg)
    except DatasetError as problem:
        return [error("data", str(problem))]
    except Exception as problem:  # registered loaders are anybody's code
        return [error("data", f"{type(problem).__name__}: {problem}")]
    trained, absent = _load(cfg, "TRAIN", "data")
    tested, untested = _load(cfg, "TEST", "test data")
    records = list(chain(*trained.values()))
    if not records and not absent:
        absent = [error("data", f"DATASETS.TRAIN {cfg.DATASETS.TRAIN} has no image")]
    flawed = absent or check_records(records, cfg)
    if flawed:
        return [*untested, *flawed]
    registered = list(chain(*(x for name, x in trained.items() if name not in remarks)))
    written = check_annotations(remarks, registered, cfg)
    rows = _check_sound(records, list(chain(*tested.values())), cfg, count_repairs(remarks))
    rows = [*untested, *written, *rows]
    if not any(row.status is Status.ERROR for row in rows):
        rows += _check_registered(cfg)
    return rows


def _check_registered(cfg: CfgNode) -> list[Finding]:
    """What stops a training on registered sets, and no other row has said."""
    try:
        check_registered_sets(cfg)
    except DatasetError as problem:
        return [error("registered data", str(problem))]
    return []


def _check_sound(
    records: list[dict], tested: list[dict], cfg: CfgNode, repairs: int
) -> list[Finding]:
    """The checks of records that can be trained on."""
    counts, checks = count_objects(records), [check_objects(records, cfg)]
    if any(counts.values()):
        checks += [check_boxes(records, repairs), check_classes(counts, cfg)]
        checks += [check_empty(records, cfg)]
    return [*checks, check_duplicates(records, tested), check_images(records, cfg)]


def _load(cfg: CfgNode, split: str, check: str) -> tuple[dict[str, list[dict]], list[Finding]]:
    """The records of each set of DATASETS.TRAIN or TEST, and an error for each that has none."""
    records, found = {}, []
    for name in cfg.DATASETS[split]:
        try:
            records[name] = DatasetCatalog.get(name)
        except Exception as problem:
            text = (
                f"DATASETS.{split} '{name}' cannot be loaded: {type(problem).__name__}: {problem}"
            )
            found.append(error(check, text))
    return records, found


def count_objects(records: list[dict]) -> Counter:
    """Class index -> boxes that are trained on."""
    return Counter(
        item["category_id"]
        for record in records
        for item in record["annotations"]
        if not item.get("iscrowd", 0)
    )


def count_left(records: list[dict], cfg: CfgNode) -> int:
    """How many images training shows, after Detectron2 left out those without objects."""
    least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return len(records)
    kept = [r for r in records if not all(a.get("iscrowd", 0) for a in r["annotations"])]
    return sum(least <= 0 or _visible_keypoints(record) >= least for record in kept)


def _visible_keypoints(record: dict) -> int:
    """Labelled keypoints of an image, as Detectron2 counts them."""
    return sum(
        (np.array(item["keypoints"][2::3]) > 0).sum()
        for item in record["annotations"]
        if "keypoints" in item
    )


def check_objects(records: list[dict], cfg: CfgNode) -> Finding:
    """How much there is to learn from."""
    boxes = sum(count_objects(records).values())
    sets = ", ".join(cfg.DATASETS.TRAIN)
    if not boxes:
        return error("data", f"{sets}: {len(records)} images and not one box to train on")
    solver = cfg.SOLVER
    images = solver.MAX_ITER * solver.ACCUMULATE_STEPS * solver.IMS_PER_BATCH
    left = count_left(records, cfg)
    epochs = images / left if left else math.inf
    number = (
        f"{len(records)} images" if left == len(records) else f"{left} of {len(records)} images"
    )
    text = f"{sets}: {number}, {boxes} boxes; {epochs:.1f} epochs in the schedule"
    if epochs < 1:
        return warning("data", text, "part of the data is never seen: raise SOLVER.MAX_ITER")
    if epochs > MANY_EPOCHS:
        advice = "is the schedule another data set's? Set SOLVER.MAX_ITER and SOLVER.STEPS"
        return warning("data", text, advice)
    return ok("data", text)


def _boxes_of(record: dict) -> np.ndarray:
    """(B, 4) in xyxy pixels, of those that are trained on."""
    rows = [
        BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS)
        for item in record["annotations"]
        if not item.get("iscrowd", 0)
    ]
    return np.asarray(rows, dtype=float).reshape(-1, 4)


def check_boxes(records: list[dict], repairs: int) -> Finding:
    """Boxes as training reads them lie inside their images, to a pixel, and have an extent."""
    bad, sizes = [], []
    for record in records:
        boxes = _boxes_of(record)
        # Detectron2 adds a size that a record does not state when it reads the image.
        limit = np.array([record.get(side, math.inf) for side in ("width", "height")] * 2) + 1.0
        flat = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
        if (flat | (boxes < -1).any(axis=1) | (boxes > limit).any(axis=1)).any():
            bad.append(record["file_name"])
        sizes.append(np.sqrt((boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)))
    marks = np.percentile(np.concatenate(sizes), (5, 50, 95))
    text = "sizes (5, 50, 95 % of the boxes): " + ", ".join(f"{x:.0f}" for x in marks) + " pixels"
    if bad:
        where = f"{len(bad)} images have boxes outside or without extent: {first_few(bad, 3)}; "
        return warning("boxes", where + text, "correct their annotations")
    after = f" after {repairs} repairs" if repairs else ""
    return ok("boxes", f"all inside their images{after}; {text}")


def check_classes(counts: Counter, cfg: CfgNode) -> Finding:
    """Every class occurs."""
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes") or []
    absent = [name for index, name in enumerate(names) if not counts[index]]
    if absent:
        text = f"{len(absent)} of {len(names)} classes have no box: {first_few(absent)}"
        advice = "they cannot be learnt: add examples, or take them out of CLASSES"
        return warning("classes", text, advice)
    text = f"{len(names)} classes, {min(counts.values())} to {max(counts.values())} boxes each"
    return ok("classes", text)


def check_empty(records: list[dict], cfg: CfgNode) -> Finding:
    """Images without a box to train on."""
    empty = sum(all(a.get("iscrowd", 0) for a in r["annotations"]) for r in records)
    skipped = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    text = f"{empty} of {len(records)} images are without boxes"
    text += " and left out (DATALOADER.FILTER_EMPTY_ANNOTATIONS)" if skipped and empty else ""
    if 2 * empty > len(records):
        return warning("empty images", text, "is DATASETS.TRAIN the right set?")
    return ok("empty images", text)


def check_duplicates(records: list[dict], tested: list[dict]) -> Finding:
    """No image twice in training, and none of the test sets in it."""
    files = Counter(record["file_name"] for record in records)
    twice = [name for name, count in files.items() if count > 1]
    leaked = sorted({record.get("file_name") for record in tested} & set(files))
    if leaked:
        text = f"{len(leaked)} images of DATASETS.TEST are trained on: {first_few(leaked, 3)}"
        return warning("duplicates", text, "results on them mean nothing: separate the sets")
    if twice:
        text = f"{len(twice)} images occur more than once: {first_few(twice, 3)}"
        return warning("duplicates", text, "take the extra entries out of the annotations")
    return ok("duplicates", "no image twice, none in both DATASETS.TRAIN and TEST")


def check_images(records: list[dict], cfg: CfgNode) -> Finding:
    """A sample of the images, the same at every call, read whole."""
    chosen = random.Random(0).sample(records, min(SAMPLED, len(records)))
    reasons = [(r["file_name"], why_unreadable(r, cfg.INPUT.FORMAT)) for r in chosen]
    bad = [f"{name} ({reason})" for name, reason in reasons if reason]
    if not bad:
        return ok("images", f"{len(chosen)} taken at random are whole")
    text = f"{len(bad)} of {len(chosen)} cannot be read: {first_few(bad, 3)}"
    if cfg.DATALOADER.BAD_IMAGES == "skip":
        return warning("images", text, "they are skipped (DATALOADER.BAD_IMAGES); repair them")
    return error("images", text, "repair or remove them, or set DATALOADER.BAD_IMAGES to 'skip'")
