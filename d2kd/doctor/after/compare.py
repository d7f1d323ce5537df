# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""From two output folders to a report: evaluate, resample, look at features."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence

from ...checkpoint.weights import load_weights_strict
from ...config.detectors import plain_facts
from ...data import num_classes, register_custom_datasets
from ...data.class_names import same_class_names
from ...engine import DistillTrainer
from ...modeling import Distiller
from ...modeling.build import read_teacher_config
from ...modeling.class_names import teacher_class_names
from ...utils.errors import ConfigError, D2kdError
from ..finding import Finding, warning
from .bootstrap import SEED, compare_scores, draw_resamples, resample_scores
from .box_agreement import compare_boxes
from .detections import Detections, detect, read_detections
from .evaluation_set import EvaluationSet, load_evaluation_sets
from .found_objects import best_score, find_objects
from .imitation import Imitation, measure_imitation
from .matches import match_detections
from .report import Report, SetReport
from .run_folder import RunFolder, read_run
from .run_pair import check_pair_of_runs

__all__ = ["compare_runs"]

# Keys of the command line that leave a run's own results valid, by their beginning.
_HARMLESS = ("MODEL.DEVICE", "DATASETS.TEST", "DISTILL.")

Say = Callable[[str], None]


def compare_runs(
    distilled: str,
    baseline: str,
    options: Sequence[str] = (),
    *,
    resamples: int = 1000,
    say: Say = lambda text: None,
) -> Report:
    """Compare a distilled run with its baseline; nothing is written into their folders.

    Args:
        distilled, baseline: OUTPUT_DIR of each.
        options: ``KEY VALUE ...`` that override the config of both.
        resamples: of the test images.
        say: called with what is done next.

    Raises:
        D2kdError: a folder, a checkpoint or a test set cannot be used, or the runs cannot be
            compared. What concerns the teacher alone becomes a note.
    """
    if resamples < 100:
        raise ConfigError(f"--resamples is {resamples}: set it to 100 or above")
    runs = read_run(distilled, options), read_run(baseline, options)
    notes = check_pair_of_runs(*runs)
    register_custom_datasets(runs[0].cfg)
    with tempfile.TemporaryDirectory() as folder:
        sets = load_evaluation_sets(runs[0].cfg, folder)
        say("building the teacher")
        model, found = _build_pair(runs[0])
        notes += found
        teacher, found = _testable_teacher(runs[0], model, sets)
        notes += found
        reuse = all(key.startswith(_HARMLESS) for key in options[0::2])
        reports = [_compare_on(x, runs, teacher, resamples, reuse, say) for x in sets]
    say("comparing features")
    imitation, note, found = _imitate(runs, model)
    return Report(*runs, notes + found, reports, imitation, note, resamples, SEED)


def _build_pair(run: RunFolder) -> tuple[Distiller | None, list[Finding]]:
    try:
        return Distiller(run.cfg), []
    except (D2kdError, OSError) as problem:
        text = f"the teacher cannot be built, so nothing is said of it: {problem}"
        return None, [warning("teacher", text, "DISTILL.TEACHER.* can be set on this command line")]


def _testable_teacher(
    run: RunFolder, model: Distiller | None, sets: list[EvaluationSet]
) -> tuple[Distiller | None, list[Finding]]:
    """The model if its teacher finds boxes of the sets' classes."""
    if model is None:
        return None, []
    cfg, classes = read_teacher_config(run.cfg), sets[0].classes
    names = teacher_class_names(run.cfg, cfg, model.teacher.classes)
    predicts, why = plain_facts(cfg).predicts, ""
    if predicts is not None and "instances" not in predicts:
        why = f"{cfg.MODEL.META_ARCHITECTURE} gives no boxes of classes"
    elif names and not same_class_names(names, classes):
        why = "its classes are not those of the test sets"
    elif num_classes(cfg) not in (None, len(classes)):
        why = f"it has {num_classes(cfg)} classes, the test sets have {len(classes)}"
    if not why:
        return model, []
    text = f"the teacher is not tested: {why}"
    return None, [warning("teacher", text, "its features are compared all the same")]


def _compare_on(
    test_set: EvaluationSet,
    runs: tuple[RunFolder, RunFolder],
    teacher: Distiller | None,
    resamples: int,
    reuse: bool,
    say: Say,
) -> SetReport:
    found = {
        who: _detections_of(run, test_set, reuse, say)
        for who, run in zip(("distilled", "baseline"), runs)
    }
    if teacher is not None:
        say(f"evaluating the teacher on {test_set.name}")
        found["teacher"] = _teacher_detections(runs[0], teacher, test_set)
    say(f"matching and resampling {test_set.name}")
    limit = runs[0].cfg.TEST.DETECTIONS_PER_IMAGE
    matches = {who: match_detections(test_set, x.rows, limit) for who, x in found.items()}
    ours, baseline = matches["distilled"], matches["baseline"]
    counts = draw_resamples(ours.num_images, resamples)
    scores = {who: resample_scores(x, counts) for who, x in matches.items()}
    report = SetReport(
        name=test_set.name,
        images=ours.num_images,
        objects=len(ours.objects.ids),
        sources={who: x.source for who, x in found.items()},
        differences=compare_scores(scores["distilled"], scores["baseline"]),
    )
    if teacher is None:
        return report
    least, theirs = best_score(matches["teacher"]), found["teacher"].rows
    nearness = [compare_boxes(found[x].rows, theirs, least) for x in ("distilled", "baseline")]
    return dataclasses.replace(
        report,
        teacher=compare_scores(scores["teacher"], scores["baseline"]),
        found=find_objects(matches["teacher"], ours, baseline),
        agreement=(nearness[0], nearness[1]),
    )


def _detections_of(run: RunFolder, test_set: EvaluationSet, reuse: bool, say: Say) -> Detections:
    """The run's own results if they are of its last checkpoint, else those of a new evaluation."""
    written = read_detections(run, test_set) if reuse else None
    if written is not None:
        return written
    say(f"evaluating {run.folder} on {test_set.name}")
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.DISTILL.ENABLED = False
    model = DistillTrainer.build_model(cfg)
    load_weights_strict(model, run.checkpoint, run.checkpoint, "student")
    return detect(cfg, model, test_set, f"evaluated now, from {run.checkpoint}")


def _teacher_detections(run: RunFolder, model: Distiller, test_set: EvaluationSet) -> Detections:
    """With the teacher's own INPUT keys, as --eval-teacher does."""
    cfg = read_teacher_config(run.cfg)
    cfg.DATASETS, cfg.TEST = run.cfg.DATASETS, run.cfg.TEST
    return detect(cfg, model.teacher.model, test_set, f"evaluated now, from {cfg.MODEL.WEIGHTS}")


def _imitate(
    runs: tuple[RunFolder, RunFolder], model: Distiller | None
) -> tuple[tuple[Imitation | None, Imitation | None], str, list[Finding]]:
    if model is None:
        return (None, None), "", []
    try:
        ours, theirs, note = measure_imitation(*runs, model)
    except (D2kdError, RuntimeError) as problem:
        text = f"the features cannot be compared: {problem}"
        return (None, None), "", [warning("features", text, "train under this teacher again")]
    return (ours, theirs), note, []
