# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A set-up for the doctor to examine."""

import pytest

from tests.common.helpers import distill_cfg
from tests.common.written_config import write_config


@pytest.fixture
def setup(tmp_path, teacher_files, clean_catalogs):
    """(yaml of a student with data and a teacher, folder of the data)."""
    folder = tmp_path / "data"
    folder.mkdir()
    return write_config(tmp_path, distill_cfg(teacher_files), folder), folder
