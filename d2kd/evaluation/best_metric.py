# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Is TEST.BEST_METRIC one of the metrics that the evaluation gives? Asked before the first step."""

from collections.abc import Iterator, Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from ..config.detectors import is_known_dense, plain_facts
from ..utils.errors import ConfigError
from ..utils.text import did_you_mean, first_few
from .coco import AnnotatedTasksEvaluator
from .evaluator import VOCAP50Evaluator

__all__ = ["check_best_metric"]

# Of each task, the first of pycocotools' results, as Detectron2 names them.
_METRICS = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}


def check_best_metric(cfg: CfgNode, evaluators: Mapping[str, DatasetEvaluator]) -> None:
    """Nothing is said of evaluators whose metrics are not known before they have evaluated.

    Args:
        cfg: TEST.BEST_METRIC is read, and what the detector predicts.
        evaluators: by the names of DATASETS.TEST.

    Raises:
        ConfigError: names the metrics that there are.
    """
    metric, several = cfg.TEST.BEST_METRIC, len(evaluators) > 1
    known: list[str] = []
    for name, evaluator in evaluators.items():
        found = _metrics(cfg, evaluator)
        if found is None:
            return
        known += [f"{name}/{one}" if several else one for one in found]
    if not metric or metric in known:
        return
    raise ConfigError(
        f"TEST.BEST_METRIC is {metric!r}: set it to one of {first_few(known, 12)}."
        f"{did_you_mean(metric, known)}"
    )


def _metrics(cfg: CfgNode, evaluator: DatasetEvaluator) -> list[str] | None:
    """As Detectron2 joins them, "bbox/AP"; None if they are not known."""
    if isinstance(evaluator, DatasetEvaluators):
        # Detectron2 gives the evaluators by this attribute alone.
        parts = [_metrics(cfg, one) for one in evaluator._evaluators]
        return None if None in parts else [name for part in parts for name in part]
    if isinstance(evaluator, VOCAP50Evaluator):
        return ["voc/AP50", *(f"voc/AP50-{name}" for name in evaluator.classes)]
    # A detector of one's own may predict anything.
    if isinstance(evaluator, AnnotatedTasksEvaluator):
        if "instances" in (plain_facts(cfg).predicts or ()):
            return list(_coco_metrics(cfg, evaluator))
    return None


def _coco_metrics(cfg: CfgNode, evaluator: AnnotatedTasksEvaluator) -> Iterator[str]:
    heads = not is_known_dense(cfg)
    tasks = {"bbox": True, "segm": cfg.MODEL.MASK_ON and heads}
    tasks["keypoints"] = cfg.MODEL.KEYPOINT_ON and heads
    for task, predicted in tasks.items():
        if predicted and task in evaluator.annotated_tasks:
            yield from (f"{task}/{name}" for name in _METRICS[task])
            yield from (f"{task}/AP-{name}" for name in _listed(evaluator.classes))


def _listed(classes: Sequence[str]) -> Sequence[str]:
    """Detectron2 gives no metric of a class where there is one class alone."""
    return classes if len(classes) > 1 else ()
