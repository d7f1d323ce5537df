# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Can the test sets be evaluated? Each evaluator is built, as before the first step."""

import tempfile

from detectron2.config import CfgNode

from ..evaluation import check_test_sets
from ..utils.errors import D2kdError
from .finding import Finding, error, ok

__all__ = ["check_evaluation"]


def check_evaluation(cfg: CfgNode) -> Finding:
    """One finding for all of DATASETS.TEST; what is converted for COCO's metrics is thrown away."""
    if not cfg.DATASETS.TEST:
        return ok("evaluation", "DATASETS.TEST is empty: nothing is evaluated")
    with tempfile.TemporaryDirectory() as folder:
        try:
            check_test_sets(cfg, folder)
        except D2kdError as problem:
            return error("evaluation", str(problem))
    names = ", ".join(cfg.DATASETS.TEST)
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    return ok("evaluation", f"{names} can be evaluated, with up to {limit} detections an image")
