# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The page is whole HTML that needs nothing else, and says what was found."""

import re
from html.parser import HTMLParser

import pytest

from d2kd.doctor.after.advice import advise
from d2kd.doctor.after.page import render_page, write_page
from d2kd.doctor.after.page.line_chart import Line, line_chart
from d2kd.doctor.after.page.svg import Scale, ticks
from d2kd.doctor.after.summary import summarize
from d2kd.doctor.after.training_log import Series
from d2kd.doctor.finding import WIDTH, warning
from tests.doctor.after.made_up_report import evaluations, losses, make_report, make_set

VOID = {"meta"}


class _Page(HTMLParser):
    """Checks that elements are closed in order; collects texts and attributes."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts, self.names, self.attributes = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return "\n".join(self.texts)


def _gradients():
    return {
        f"distill_gradient/{name}_{kind}": value
        for name in ("feature", "cls")
        for kind, value in (("ratio", 3.0), ("cosine", -0.2))
    }


@pytest.fixture
def report():
    rows = {i: {**x, **_gradients()} for i, x in losses(3.0).items()}
    ours = {**rows, **evaluations(10, 20, 32)}
    notes = [warning("seeds", "SEED is 1 and 2 <b>", "train again")]
    return make_report(ours=ours, baseline=evaluations(9, 19, 30), notes=notes)


def _render(report):
    return render_page(report, advise(report))


def test_the_page_is_whole_and_needs_nothing_else(report):
    html = _render(report)
    page = _Page(html)
    assert not {"script", "link", "img", "iframe"} & set(page.names)
    assert not [x for x in page.attributes if x[0] in ("src", "href") or "://" in (x[1] or "")]
    assert not re.search(r"url\(|@import|://", html)
    assert html.startswith("<!DOCTYPE html>") and page.names.count("h1") == 1


def test_the_page_says_what_was_found(report):
    page = _Page(_render(report))
    for words in (
        "mine against mine_baseline",
        "AP 32.00 against 30.00, +2.00 (95 % interval +1.00 to +3.00",
        "1000 resamples (seed 0)",
        "AP cat & <dog>",
        "SEED is 1 and 2 <b>",
        "no objects",
        "of the missed, distilled finds",
        "met by a box of the class with IoU 0.5",
        "ratio of losses",
        "cosine to the detection losses",
        "written by the run itself",
    ):
        assert words in page.text, words
    # AP and intervals, features, AP over time, ratios, and two of gradients.
    assert page.names.count("svg") == 6


def test_the_page_without_teacher_and_logs_says_what_is_missing():
    report = make_report(make_set(teacher=[]), imitation=(None, None))
    page = _Page(_render(report))
    assert "set TEST.EVAL_PERIOD" in page.text and "set DISTILL.LOG_GRADIENTS" in page.text
    assert "no metrics.json" in page.text and "The teacher on" not in page.text
    assert page.names.count("svg") == 1


def test_a_teacher_far_above_is_left_out_of_the_chart_and_named():
    report = make_report(ours=evaluations(1, 2, 3), baseline=evaluations(1, 1, 2))
    assert "The teacher's AP, 40.0, is far above the chart." in _Page(_render(report)).text


def test_write_page_creates_the_folder(report, tmp_path):
    write_page(report, advise(report), tmp_path / "new" / "page.html")
    assert "</html>" in (tmp_path / "new" / "page.html").read_text()


def test_the_summary_fits_a_terminal(report):
    text = summarize(report, advise(report))
    assert max(map(len, text.splitlines())) <= WIDTH and len(text.splitlines()) < 45
    assert re.search(r"AP +30.00 +32.00 +\+2.00 +\+1.00 to \+3.00 +40.00", text)
    assert "warning seeds" in text and "AP cat & <dog>" in text and "AP bird" not in text


@pytest.mark.parametrize("low, high, expected", [(0, 10, [0, 2, 4, 6, 8, 10]), (-1, 1, None)])
def test_ticks_are_round(low, high, expected):
    found = ticks(low, high)
    assert 0 in found and low <= found[0] and found[-1] <= high and 3 <= len(found) <= 7
    assert expected is None or found == expected


def test_scales_map_ends_and_powers_of_ten():
    assert Scale(0, 10, 100, 0)(2.5) == 75 and Scale(1, 100, 0, 10, log=True)(10) == 5
    assert Scale(3, 3, 0, 10)(3) == 0


def test_a_chart_of_one_or_no_point_is_drawn_or_left_out():
    assert line_chart([Line("a", "red", Series([], []))], "t") == ""
    assert line_chart([Line("a", "red", Series([5], [-1.0]))], "t", log=True) == ""
    assert "<svg" in line_chart([Line("a", "red", Series([5], [1.0]))], "t", log=True)
    assert "<svg" in line_chart([Line("a", "red", Series([0], [0.0]))], "t")
