# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A config with data of its own, as a user writes it, for what is called with its path."""

import yaml

from tests.common.helpers import write_coco_set


def write_config(tmp_path, cfg, folder, name="mine"):
    """Path of a yaml of ``cfg`` that declares a COCO set in ``folder``."""
    content = yaml.safe_load(cfg.dump())
    declared = write_coco_set(folder)
    content["DATASETS"].update(CUSTOM={name: dict(declared)}, TRAIN=[name], TEST=[])
    content["OUTPUT_DIR"] = str(tmp_path / "output")
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "student.yaml")
