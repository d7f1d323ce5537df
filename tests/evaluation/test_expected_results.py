# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""TEST.EXPECTED_RESULTS of one set and of several."""

import pytest

from d2kd.evaluation import verify_expected_results
from d2kd.evaluation.expected_results import UnexpectedResultsError
from tests.common.toy_sets import make_cfg

A, B = {"bbox": {"AP": 10.0}}, {"bbox": {"AP": 20.0}}


def cfg_of(sets, *entries):
    cfg = make_cfg(test=sets)
    cfg.TEST.EXPECTED_RESULTS = [list(entry) for entry in entries]
    return cfg


def test_one_set():
    verify_expected_results(cfg_of(["a"], ("bbox", "AP", 10.4, 0.5)), A)
    verify_expected_results(cfg_of(["a"], ("a", "bbox", "AP", 10.4, 0.5)), A)
    with pytest.raises(UnexpectedResultsError, match="a: bbox/AP is 10.0, expected 10.6"):
        verify_expected_results(cfg_of(["a"], ("bbox", "AP", 10.6, 0.5)), A)


def test_an_entry_holds_for_every_set_or_for_the_named_one():
    results = {"a": A, "b": B}
    verify_expected_results(cfg_of(["a", "b"], ("bbox", "AP", 15, 5)), results)
    verify_expected_results(cfg_of(["a", "b"], ("b", "bbox", "AP", 20, 0)), results)
    with pytest.raises(UnexpectedResultsError) as error:
        verify_expected_results(cfg_of(["a", "b"], ("bbox", "AP", 20, 5)), results)
    assert "a: bbox/AP" in str(error.value) and "b: bbox/AP" not in str(error.value)


@pytest.mark.parametrize("results", [{}, {"bbox": {}}, {"bbox": {"AP": float("nan")}}])
def test_what_is_absent_or_not_finite_is_not_as_expected(results):
    with pytest.raises(UnexpectedResultsError, match="expected 0"):
        verify_expected_results(cfg_of(["a"], ("bbox", "AP", 0, 100)), results)
