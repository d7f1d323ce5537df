# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""OUTPUT_DIR is tried before the first step."""

import errno
import os

import pytest

from d2kd.checkpoint.output_dir import ConfigError, prepare_output


def test_made_and_left_clean(tmp_path):
    prepare_output(str(tmp_path / "a" / "b"))
    prepare_output(str(tmp_path / "a" / "b"))
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("name", ["file.txt", "file.txt/output", "/proc/d2kd"])
def test_not_writable(tmp_path, name):
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ConfigError, match=f"OUTPUT_DIR .*{name} cannot be written.*Set it"):
        prepare_output(os.path.join(tmp_path, name))


def test_without_permission(tmp_path, monkeypatch):
    # Root may write anywhere; what the system tells others is said here by hand.
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("d2kd.checkpoint.output_dir.tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(ConfigError, match="cannot be written: .*Permission denied"):
        prepare_output(str(tmp_path))


def test_full_disk_is_noticed_and_nothing_stays(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left.*space for the checkpoints"):
        prepare_output(str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []
