# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A file is written completely or not at all; its SHA-256 is that of the whole content."""

import hashlib
import os

import pytest

from d2kd.utils.files import atomic_write, sha256


def test_an_error_while_writing_leaves_no_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with atomic_write(str(path), "w") as file:
            file.write("new")
            raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_the_data_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("rename"), replace(*a)))
    with atomic_write(str(tmp_path / "a"), "wb") as file:
        file.write(b"x")
    assert events == ["fsync", "rename", "fsync"]


def test_sha256_is_of_the_whole_file(tmp_path):
    content = os.urandom((1 << 20) + 7)
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
