# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Each rule says its figure, and fires only where it applies."""

import dataclasses

import pytest

from d2kd.doctor import Status
from d2kd.doctor.after.advice import advise
from d2kd.doctor.after.advice.result import images_needed
from d2kd.doctor.after.bootstrap import Difference
from tests.doctor.after.made_up_report import (
    FAR,
    GAIN,
    NEAR,
    evaluations,
    losses,
    make_report,
    make_set,
    teacher_of,
)

UNSURE = [Difference("AP", 31.0, 30.0, -1.0, 3.0), *GAIN[1:]]
WORSE = [Difference("AP", 28.0, 30.0, -3.0, -1.0), *GAIN[1:]]


def _advice(*args, **kwargs):
    """check -> finding."""
    return {x.check: x for x in advise(make_report(*args, **kwargs))}


def _is(finding, status, *words):
    assert finding.status is status
    assert all(word in finding.text + finding.advice for word in words), finding


def test_the_verdict_comes_first_and_names_the_interval():
    found = advise(make_report())[0]
    _is(found, Status.OK, "AP 32.00 against 30.00, +2.00", "+1.00 to +3.00", "1000 resamples")
    _is(_advice(make_set(WORSE))["loss"], Status.WARNING, "-2.00", "worse")


def test_an_interval_that_holds_0_says_how_many_images_are_needed():
    # Half of the interval is 2, the gain 1: four times the images, and twice that for 4 of 5 tries.
    _is(_advice(make_set(UNSURE))["no evidence"], Status.WARNING, "holds 0", "about 4082 test")
    alike = [Difference("AP", 30.01, 30.0, -1.0, 1.0), *GAIN[1:]]
    _is(_advice(make_set(alike))["no evidence"], Status.WARNING, "the runs are alike")
    assert images_needed(Difference("AP", float("nan"), 1, 0, 0), 5) is None


def test_intervals_of_few_images_are_called_rough():
    assert "rough" in _advice(make_set(images=20))["gain"].text
    assert "rough" not in _advice(make_set(images=50))["gain"].text


def test_a_class_that_was_lost_is_named():
    lost = [*GAIN[:-1], Difference("AP bird", 30.0, 32.0, -3.0, -1.0)]
    _is(_advice(make_set(lost))["lost"], Status.WARNING, "AP bird", "-2.0", "lower DISTILL.*")
    weak = teacher_of(40.0, 60.0, 42.0, 20.0, 60.0, 41.0, 31.0)
    _is(_advice(make_set(lost, weak))["lost"], Status.WARNING, "the teacher has 31.0 there")
    assert "lost" not in _advice()


def test_runs_that_still_rise_should_be_longer():
    rising, flat = evaluations(10.0, 20.0, 30.0), evaluations(10.0, 29.9, 30.0)
    found = _advice(baseline=rising, ours=rising)
    _is(found["not converged"], Status.WARNING, "from 20.00 (iteration 20) to 30.00")
    assert not {"not converged", "gain grows", "growth"} & set(_advice(baseline=flat, ours=flat))
    found = _advice(baseline=flat, ours=evaluations(10.0, 31.0, 35.0))
    _is(found["gain grows"], Status.OK, "from +1.10 to +5.00 AP")
    _is(_advice()["growth"], Status.OK, "TEST.EVAL_PERIOD")


@pytest.mark.parametrize(
    "aps, status, words",
    [
        ([29.0], Status.WARNING, "nothing to teach"),
        ([31.0], Status.WARNING, "a lead of 1.0 leaves little"),
        ([40.0], Status.OK, "of this lead of 10.0 the distilled student gained +2.0"),
    ],
)
def test_the_teacher_should_be_better_than_the_baseline(aps, status, words):
    _is(_advice(make_set(teacher=teacher_of(*aps)))["teacher"], status, words)


def test_classes_on_which_the_teacher_is_below_the_baseline_are_named():
    weak = teacher_of(40.0, 60.0, 42.0, 20.0, 60.0, 41.0, 20.0)
    found = _advice(make_set(teacher=weak))["weak classes"]
    _is(found, Status.WARNING, "bird (20.0 against 32.0)", "DISTILL.TEACHER.CLASSES")
    assert "weak classes" not in _advice()


def test_a_student_that_gives_up_what_the_teacher_misses_is_warned_of():
    found = _advice(make_set(missed=(20, 2, 10)))["missed"]
    _is(found, Status.WARNING, "misses 20 of 100", "finds 10%, the baseline 50%")
    assert _advice()["missed"].status is Status.OK


def test_without_a_teacher_nothing_is_said_of_it():
    found = _advice(make_set(teacher=[]), imitation=(None, None))
    assert not {"teacher", "missed", "weak classes", "features"} & set(found)


def test_ratios_are_rated_at_full_factor():
    found = _advice(ours=losses(40.0, factor=0.1))["ratio feature"]
    _is(found, Status.WARNING, "20 x", "DISTILL.FEATURE.WEIGHT 0.025 would make it 0.5 (was 1)")
    assert _advice(ours=losses(10.0))["ratio feature"].status is Status.OK
    assert _advice(ours=losses(0.01))["ratio feature"].status is Status.WARNING
    _is(_advice(ours=losses(0.0))["ratio feature"], Status.WARNING, "is DISTILL.FEATURE.WEIGHT 0?")
    assert "ratio feature" not in _advice(ours=losses(1.0, factor=0.0))


def test_gradients_that_pull_against_detection_are_warned_of():
    _is(_advice()["gradients"], Status.OK, "set DISTILL.LOG_GRADIENTS")
    rows = {
        i: {"distill_gradient/cls_cosine": -0.4, "distill_gradient/cls_ratio": 3.0} for i in "ab"
    }
    found = _advice(ours=rows)["gradients"]
    _is(found, Status.WARNING, "cosine -0.40", "norm 3 x theirs", "lower DISTILL.CLS.WEIGHT")
    rows = {i: {"distill_gradient/cls_cosine": 0.0} for i in "ab"}
    assert _advice(ours=rows)["gradients"].status is Status.OK


def test_features_that_came_no_nearer_are_warned_of():
    _is(
        _advice()["features"],
        Status.OK,
        "(CKA) 0.50, the baseline's 0.10; the feature loss 1, the baseline's 9",
    )
    found = _advice(imitation=(FAR, FAR))["features"]
    _is(found, Status.WARNING, "no nearer", "raise DISTILL.FEATURE.WEIGHT")


def test_features_are_nearer_by_either_measure():
    """The loss of one with adapters is not there; CKA may not see what a mask leaves."""
    adapted = dataclasses.replace(FAR, losses={"cls": 1.0})
    assert _advice(imitation=(NEAR, adapted))["features"].status is Status.OK
    alike = dataclasses.replace(FAR, similarity=NEAR.similarity)
    assert _advice(imitation=(NEAR, alike))["features"].status is Status.OK
    both = dataclasses.replace(adapted, similarity=NEAR.similarity)
    assert _advice(imitation=(NEAR, both))["features"].status is Status.WARNING


def test_features_that_came_nearer_without_a_gain_ask_for_another_target():
    squared = _advice(make_set(UNSURE))["features"]
    _is(squared, Status.WARNING, "without a sure gain", "DISTILL.FEATURE.DISTANCE 'ssim'")
    options = ["DISTILL.FEATURE.DISTANCE", "ssim", "DISTILL.LOSSES", ["feature"]]
    assert "add 'cls' and 'reg'" in _advice(make_set(UNSURE), options=options)["features"].advice
    options = ["DISTILL.FEATURE.DISTANCE", "ssim"]
    assert "a better teacher" in _advice(make_set(UNSURE), options=options)["features"].advice


def test_losses_on_each_students_own_regions_are_not_compared():
    """Two-stage students have their own proposals, and a gate leaves out others of each."""
    assert "learnt cls" not in _advice(imitation=(FAR, FAR))
    dense = ["MODEL.META_ARCHITECTURE", "RetinaNet"]
    assert "learnt cls" in _advice(imitation=(FAR, FAR), options=dense)
    assert "learnt cls" not in _advice(imitation=(NEAR, FAR), options=dense)
