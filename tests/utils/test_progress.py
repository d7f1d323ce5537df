# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The line and the bars on a terminal: in one place, no log line torn, nothing where it is none."""

import logging
import sys

import pytest

from d2kd.utils.progress import Line, fit, loss_terms, open_bar, progress
from tests.common.terminal import screen, terminal

ITEMS = ["iter 7/90", "eta 0:01:02", "loss 2.310", "cls 0.51"]


@pytest.fixture
def logger():
    """A logger of this test alone, which writes where sys.stdout is when it is set up."""
    logger = logging.getLogger("progress.test")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger
    logger.handlers.clear()


def test_fit_keeps_whole_items():
    assert fit(ITEMS, 80) == "iter 7/90  eta 0:01:02  loss 2.310  cls 0.51"
    assert fit(ITEMS, 35) == fit(ITEMS, 44) == "iter 7/90  eta 0:01:02  loss 2.310"
    assert fit(ITEMS, 34) == "iter 7/90  eta 0:01:02", "a terminal wraps a line that fills it"
    assert fit(ITEMS, 5) == fit([], 80) == ""


def test_loss_terms_are_losses_alone():
    values = {"loss_cls": 0.512, "loss_distill_reg": 1e-5, "loss_ratio/cls": 2.0, "lr": 0.1}
    assert loss_terms(values) == ["cls 0.512", "distill_reg 1e-05"]


@pytest.mark.parametrize("columns", [80, 34])
def test_the_line_moves_below_a_whole_log(logger, columns):
    with terminal(columns) as text:
        logger.addHandler(logging.StreamHandler(sys.stdout))
        line = Line()
        for i in range(30):
            line.show([f"iter {i}/30", *ITEMS[1:]])
            if i % 10 == 5:
                logger.info("a line of the log: %d", i)
        line.hide()
        logger.info("the end")
        print("printed")
    lines = screen(text[0], columns)
    expected = ["a line of the log: 5", "a line of the log: 15", "a line of the log: 25"]
    assert lines == [*expected, "the end", "printed", ""]
    assert "iter 29/30" in text[0] and max(map(len, text[0].split("\r"))) <= columns


def test_a_bar_takes_the_place_of_the_line(logger):
    with terminal() as text:
        logger.addHandler(logging.StreamHandler(sys.stdout))
        line = Line()
        line.show(["iter 1/2"])
        for i in progress(range(3), 3, "evaluating mine", "batch"):
            logger.info("batch %d", i)
        print("COCO's table")
        line.show(["iter 2/2"])
        logger.info("trained")
        line.hide()
    assert screen(text[0]) == ["batch 0", "batch 1", "batch 2", "COCO's table", "trained", ""]
    assert "evaluating mine" in text[0] and text[0].index("iter 1/2") < text[0].index("iter 2/2")


def test_what_the_line_says_is_not_logged_beside_it(tmp_path):
    logger = logging.getLogger("detectron2.utils.events")
    with terminal() as text:
        handlers = [logging.StreamHandler(sys.stdout), logging.FileHandler(tmp_path / "log.txt")]
        logger.handlers += handlers
        line = Line()
        line.show(["iter 1/2"])
        logger.warning("eta: 0:00:01  iter: 1")
        line.hide()
        logger.warning("after")
        for handler in handlers:
            logger.handlers.remove(handler)
    assert screen(text[0]) == ["after", ""]
    assert (tmp_path / "log.txt").read_text() == "eta: 0:00:01  iter: 1\nafter\n"


def test_a_bar_that_is_left_gives_the_log_back(logger):
    with terminal() as text:
        handler = logging.StreamHandler(sys.stdout)
        logger.addHandler(handler)
        stream = handler.stream
        with pytest.raises(KeyError):
            for _ in progress(range(3), 3, "evaluating", "batch"):
                raise KeyError
        assert handler.stream is stream and not handler.filters
        logger.info("whole")
    assert screen(text[0])[-2:] == ["whole", ""]


def test_without_a_terminal_nothing_is_shown(capsys):
    Line().show(ITEMS)
    assert list(progress(range(3), 3, "evaluating", "batch")) == [0, 1, 2]
    with open_bar(3, "cache", "entry") as bar:
        bar.update(3)
    out = capsys.readouterr()
    assert out.out == out.err == ""
