# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Everything that the evaluation reads, tried before the first step of a training."""

import os

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ..data.datasets.registered import load_registered
from ..utils.errors import D2kdError, DatasetError
from ..utils.text import first_few
from .best_metric import check_best_metric
from .evaluator import build_evaluator
from .expected_results import check_expected_results

__all__ = ["check_test_sets"]


def check_test_sets(cfg: CfgNode, output_folder: str | None = None, train: bool = True) -> None:
    """Load every set of DATASETS.TEST, find its images, and build its evaluator.

    A training evaluates when it is over: what is missing then has cost all of it.

    Args:
        cfg: DATASETS.TEST, TEST.* and what evaluators read.
        output_folder: where converted annotations go; None is as in training.
        train: whether a training follows, which compares TEST.BEST_METRIC.

    Raises:
        ConfigError: TEST.EXPECTED_RESULTS or TEST.BEST_METRIC names no result that there will be.
        DatasetError: names the set, and what is missing or wrong.
    """
    check_expected_results(cfg)
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    evaluators = {}
    for name in cfg.DATASETS.TEST:
        _check_records(name, load_registered("TEST", name))
        try:
            evaluators[name] = build_evaluator(cfg, name, os.path.join(folder, name))
        except D2kdError:
            raise
        except Exception as problem:  # Detectron2's and pycocotools' own, of whatever kind
            raise DatasetError(
                f"DATASETS.TEST '{name}' cannot be evaluated: {type(problem).__name__}: {problem}"
            ) from problem
    if train:
        check_best_metric(cfg, evaluators)


def _check_records(name: str, records: list[dict]) -> None:
    """Each has an id of its own, and its image is there."""
    if not records:
        raise DatasetError(f"DATASETS.TEST '{name}' has no image")
    lacking = [r.get("file_name", "one without file_name") for r in records if "image_id" not in r]
    if lacking:
        raise DatasetError(f"DATASETS.TEST '{name}': no image_id in {first_few(lacking, 3)}")
    if len({record["image_id"] for record in records}) < len(records):
        raise DatasetError(f"DATASETS.TEST '{name}': several images have one image_id")
    files = [record["file_name"] for record in records if "file_name" in record]
    missing = [path for path in files if not PathManager.isfile(path)]
    if missing:
        raise DatasetError(
            f"DATASETS.TEST '{name}': {len(missing)} of {len(records)} images are not there: "
            f"{first_few(missing, 3)}"
        )
