# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Reading an output folder, and what is said of one that is not whole."""

import pytest
import torch

from d2kd.doctor.after.run_folder import read_run
from d2kd.utils.errors import ConfigError, ResumeError, WeightsError
from tests.doctor.after.toy_runs import CLASSES, copy_run


def test_a_run_is_read_with_its_checkpoint_and_log(trained):
    run = read_run(str(trained[0]), ["INPUT.MIN_SIZE_TEST", "48"])
    assert run.distilled and run.name == "mine" and run.iterations == 2
    assert run.classes == tuple(CLASSES) and run.cfg.INPUT.MIN_SIZE_TEST == 48
    assert run.checkpoint.endswith("model_final.pth") and run.content["distill_losses"]
    assert set(run.log.loss_ratios()) == {"feature", "cls", "reg"}
    assert not read_run(str(trained[1])).distilled


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no .*config.yaml.*OUTPUT_DIR of a training"):
        read_run(str(tmp_path))


def test_a_run_without_checkpoint_is_refused(trained, tmp_path):
    folder = copy_run(trained[0], tmp_path / "a")
    (folder / "last_checkpoint").unlink()
    assert read_run(str(folder)).iterations == 2  # model_final.pth alone is enough
    (folder / "model_final.pth").unlink()
    with pytest.raises(WeightsError, match="there is no checkpoint"):
        read_run(str(folder))
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(ResumeError, match="is not there"):
        read_run(str(folder))


def test_a_file_that_is_no_checkpoint_is_refused(trained, tmp_path):
    folder = copy_run(trained[0], tmp_path / "a")
    torch.save({"weights": {}}, folder / "model_final.pth")
    with pytest.raises(WeightsError, match='holds no "model"'):
        read_run(str(folder))
    (folder / "last_checkpoint").unlink()
    (folder / "model_final.pth").write_text("no checkpoint")
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint"):
        read_run(str(folder))
