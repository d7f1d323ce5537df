# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The end of a training, also before SOLVER.MAX_ITER: test-time augmentation, expected results."""

import os
from collections import OrderedDict
from contextlib import suppress

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, PreciseBN
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from ..checkpoint import BestCheckpoint
from ..data import class_names
from ..evaluation import build_evaluator, verify_expected_results
from ..modeling import Distiller
from ..utils.errors import ConfigError
from .unwrap import unwrap

__all__ = ["FinalEvaluation", "measure_student_alone"]


class StoppedEarly(BaseException):
    """Leaves Detectron2's loop over the steps, which logs what is an Exception as a failure."""


class FinalEvaluation(DefaultTrainer):
    """Mixed into DefaultTrainer: how a training ends, and what is evaluated then."""

    iter: int
    max_iter: int
    _stopped_early = False
    # The step after which the student was evaluated last.
    _evaluated_step: int | None = None

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

    def evaluate_step(self) -> OrderedDict:
        """The results of ``test`` after this step; a step is evaluated once.

        A training that its last evaluation has ended is not evaluated again.
        """
        # After the training Detectron2 counts one step more than it has made.
        step = min(self.iter, self.max_iter - 1)
        if self._evaluated_step != step:
            self._last_eval_results = self.test(self.cfg, self.model)
            self._evaluated_step = step
        return self._last_eval_results

    def add_evaluations(self, hooks: list[HookBase]) -> None:
        """Evaluate by ``evaluate_step``, then keep the best (TEST.BEST_METRIC), then use TEST.AUG.

        The one with TEST.AUG follows the last step alone.

        Args:
            hooks: DefaultTrainer's; changed in place.

        Raises:
            ConfigError: Detectron2 has no test-time augmentation for the detector.
        """
        at = [type(hook) for hook in hooks].index(EvalHook)
        hooks[at] = EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate_step)
        added: list[HookBase] = []
        if self.cfg.TEST.BEST_METRIC:
            student, classes = _student_of(self.model), class_names(self.cfg)
            added = [BestCheckpoint(self.cfg, student, classes, lambda: self._last_eval_results)]
        if self.cfg.TEST.AUG.ENABLED:
            if not isinstance(_student_of(self.model), GeneralizedRCNN):
                raise ConfigError(
                    "TEST.AUG.ENABLED is True: set it to False, MODEL.META_ARCHITECTURE "
                    f"{self.cfg.MODEL.META_ARCHITECTURE} is no GeneralizedRCNN"
                )
            added.append(EvalHook(0, self._evaluate_with_tta))
        hooks[at + 1 : at + 1] = added

    def _evaluate_with_tta(self) -> OrderedDict:
        results = self.test_with_tta(self.cfg, self.model)
        _add_results(self._last_eval_results, results)
        return results

    def stop_early(self) -> None:
        """End the training after this step, as if it were its last; to be called in it by a hook.

        Every process must call it in the same step.
        """
        self.max_iter = self.iter + 1
        self._stopped_early = True

    def after_step(self) -> None:
        """Run all hooks, and end the training if one of them asks for it."""
        super().after_step()
        self.end_if_stopped()

    def end_if_stopped(self) -> None:
        """Leave the loop over the steps after ``stop_early``, so that the training is complete.

        Raises:
            StoppedEarly: which ``train`` expects.
        """
        if self._stopped_early:
            self.iter = self.max_iter
            raise StoppedEarly

    def train(self) -> OrderedDict | None:
        """As DefaultTrainer's; TEST.EXPECTED_RESULTS may name several sets.

        Raises:
            UnexpectedResultsError: the results differ from TEST.EXPECTED_RESULTS.
        """
        with suppress(StoppedEarly):
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
