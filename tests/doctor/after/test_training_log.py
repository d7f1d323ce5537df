# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What metrics.json tells, also of resumed and repeated trainings."""

import json

import pytest

from d2kd.doctor.after.training_log import Series, read_log
from d2kd.utils.errors import D2kdError


def _write(folder, rows, end=""):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.json").write_text(text + end)
    return str(folder)


def test_ratios_are_over_the_sum_of_the_detection_losses(tmp_path):
    row = {"loss_cls": 1.0, "loss_box_reg": 3.0, "loss_distill_reg": 2.0, "loss_ratio/reg": 9.0}
    rows = [{"iteration": 19, **row}, {"iteration": 39, **row, "loss_distill_reg": 1.0}]
    log = read_log(_write(tmp_path, rows))
    assert log.loss_ratios() == {"reg": Series([19, 39], [0.5, 0.25])}


def test_of_a_resumed_run_the_last_row_of_an_iteration_counts(tmp_path):
    rows = [{"iteration": i, "total_loss": float(i)} for i in (19, 39, 59)]
    rows += [{"iteration": 39, "total_loss": -1.0}]
    log = read_log(_write(tmp_path, rows))
    assert log.series("total_loss") == Series([19, 39], [19.0, -1.0])


def test_an_evaluation_that_is_written_late_drops_nothing(tmp_path):
    """Detectron2 writes every 20 steps what has come since, not in order."""
    rows = [{"iteration": 19, "total_loss": 1.0}, {"iteration": 39, "total_loss": 2.0}]
    rows += [{"iteration": 29, "bbox/AP": 5.0}]
    log = read_log(_write(tmp_path, rows))
    assert list(log.rows) == [19, 29, 39]


def test_rows_beyond_the_checkpoint_are_left_out_but_for_its_evaluation(tmp_path):
    rows = [{"iteration": 19, "lr": 1.0}, {"iteration": 20, "bbox/AP": 5.0}, {"iteration": 39}]
    log = read_log(_write(tmp_path, rows), last=19)
    assert list(log.rows) == [19, 20] and log.average_precision("a").values == [5.0]


def test_one_of_several_sets_has_its_name_in_the_log(tmp_path):
    log = read_log(_write(tmp_path, [{"iteration": 9, "b/bbox/AP": 5.0, "a/bbox/AP": 4.0}]))
    assert log.average_precision("b").values == [5.0]


def test_values_that_are_not_finite_are_left_out(tmp_path):
    rows = [{"iteration": 9, "bbox/AP": float("nan")}, {"iteration": 19, "bbox/AP": 1.0}]
    assert read_log(_write(tmp_path, rows)).series("bbox/AP") == Series([19], [1.0])


def test_a_line_cut_off_by_a_kill_is_left_out_and_another_is_named(tmp_path):
    assert list(read_log(_write(tmp_path, [{"iteration": 9}], '{"iterat')).rows) == [9]
    (tmp_path / "metrics.json").write_text('{"iterat\n{"iteration": 9}\n')
    with pytest.raises(D2kdError, match="line 1 is no JSON"):
        read_log(str(tmp_path))


def test_a_folder_without_metrics_has_an_empty_log(tmp_path):
    log = read_log(str(tmp_path))
    assert log.rows == {} and log.loss_ratios() == {} and not log.series("lr").values
