# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The end of a training, as in Detectron2's own train_net.py: test-time augmentation, and results
that are expected."""

import os
from collections import OrderedDict

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, PreciseBN
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from ..evaluation import build_evaluator, verify_expected_results
from ..modeling import Distiller
from ..utils.errors import ConfigError
from .unwrap import unwrap

__all__ = ["FinalEvaluation", "measure_student_alone"]


class FinalEvaluation(DefaultTrainer):
    """Mixed into DefaultTrainer: what it evaluates once all is trained."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """COCO's metrics; results are written to inference/ in OUTPUT_DIR."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, folder)

    @classmethod
    def test_all(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """The results of ``test``, with those of test-time augmentation if TEST.AUG.ENABLED."""
        results = cls.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            _add_results(results, cls.test_with_tta(cfg, model))
        return results

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Results of a GeneralizedRCNN under TEST.AUG, each task with "_TTA" at its end."""
        student = _student_of(model)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        names = cfg.DATASETS.TEST
        evaluators = [build_evaluator(cfg, name, os.path.join(folder, name)) for name in names]
        augmented = GeneralizedRCNNWithTTA(cfg, student).train(student.training)
        results = cls.test(cfg, augmented, evaluators)
        if len(names) == 1:
            return _rename(results)
        return OrderedDict((name, _rename(found)) for name, found in results.items())

    def add_tta_hook(self, hooks: list[HookBase]) -> None:
        """Evaluate with TEST.AUG after the last step, after the evaluation without it.

        Raises:
            ConfigError: Detectron2 has no test-time augmentation for the detector.
        """
        if self.cfg.TEST.AUG.ENABLED:
            if not isinstance(_student_of(self.model), GeneralizedRCNN):
                raise ConfigError(
                    "TEST.AUG.ENABLED is True: set it to False, MODEL.META_ARCHITECTURE "
                    f"{self.cfg.MODEL.META_ARCHITECTURE} is no GeneralizedRCNN"
                )
            at = [type(hook) for hook in hooks].index(EvalHook) + 1
            hooks.insert(at, EvalHook(0, self._evaluate_with_tta))

    def _evaluate_with_tta(self) -> OrderedDict:
        results = self.test_with_tta(self.cfg, self.model)
        _add_results(self._last_eval_results, results)
        return results

    def train(self) -> OrderedDict | None:
        """As DefaultTrainer's; TEST.EXPECTED_RESULTS may name several sets.

        Raises:
            UnexpectedResultsError: the results differ from TEST.EXPECTED_RESULTS.
        """
        TrainerBase.train(self, self.start_iter, self.max_iter)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            verify_expected_results(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None


def measure_student_alone(hooks: list[HookBase], model: nn.Module) -> list[HookBase]:
    """Let precise BatchNorm statistics run the student alone; the teacher's outputs are not read.

    Args:
        hooks: DefaultTrainer's.
        model: the Distiller, or the plain student.
    """
    student = _student_of(model)
    # PreciseBN gives its settings by its private attributes only.
    return [
        (
            PreciseBN(hook._period, student, hook._data_loader, hook._num_iter)
            if isinstance(hook, PreciseBN) and not hook._disabled
            else hook
        )
        for hook in hooks
    ]


def _student_of(model: nn.Module) -> nn.Module:
    model = unwrap(model)
    return model.student if isinstance(model, Distiller) else model


def _rename(results: dict) -> OrderedDict:
    return OrderedDict((f"{task}_TTA", found) for task, found in results.items())


def _add_results(results: dict, more: dict) -> None:
    """Of one set by task, or of several by their names."""
    for name, found in more.items():
        if name in results:
            results[name].update(found)
        else:
            results[name] = found
