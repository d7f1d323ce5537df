# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A set-up for the doctor to examine."""

import pytest
import yaml

from tests.common.helpers import distill_cfg, write_coco_set


@pytest.fixture
def setup(tmp_path, teacher_files, clean_catalogs):
    """(yaml of a student with data and a teacher, folder of the data)."""
    folder = tmp_path / "data"
    folder.mkdir()
    return _write(tmp_path, distill_cfg(teacher_files), folder), folder


def _write(tmp_path, cfg, folder, name="mine"):
    content = yaml.safe_load(cfg.dump())
    declared = write_coco_set(folder)
    content["DATASETS"].update(CUSTOM={name: dict(declared)}, TRAIN=[name], TEST=[])
    content["OUTPUT_DIR"] = str(tmp_path / "output")
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "student.yaml")
