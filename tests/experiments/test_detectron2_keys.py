# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""docs/detectron2_keys.md holds every key of Detectron2, and says who reads it."""

from detectron2.config import get_cfg

from d2kd.config.defaults import get_value
from d2kd.config.load import all_keys
from experiments.detectron2_keys import MAIN_KEYS, NOTES, documented_keys, trace_all
from tests.common import ROOT

PAGE = documented_keys((ROOT / "docs" / "detectron2_keys.md").read_text())


def test_every_key_of_detectron2_stands_in_the_page():
    keys = {key for key in all_keys(get_cfg()) if not isinstance(get_value(get_cfg(), key), dict)}
    assert keys | set(MAIN_KEYS) == set(PAGE)
    assert set(NOTES) <= set(PAGE)


def test_the_page_says_who_reads_each_key(tmp_path):
    readers = trace_all(tmp_path)
    for key in set(PAGE) - set(MAIN_KEYS):
        assert PAGE[key] == (", ".join(sorted(readers.get(key, ()))) or "nobody"), key


def test_only_one_key_is_read_by_nobody():
    assert [key for key, readers in PAGE.items() if readers == "nobody"] == ["GLOBAL.HACK"]
