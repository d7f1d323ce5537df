# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A user's mistake ends a command with one message and status 2; a bug keeps its traceback."""

import logging

import pytest
from torch.utils.data import DataLoader, Dataset

from d2kd.utils.command_line import exit_on_user_error
from d2kd.utils.errors import ConfigError, D2kdError, DatasetError

TRAINING = logging.getLogger("detectron2.engine.train_loop")


def _end(error, **options):
    with pytest.raises(SystemExit) as ended, exit_on_user_error(**options):
        raise error
    return ended.value.code


@pytest.mark.parametrize("error", [D2kdError("set A to 1"), ConfigError("set A to 1")])
def test_a_user_error_is_one_message_on_stderr(capfd, error):
    assert _end(error) == 2
    assert capfd.readouterr() == ("", "set A to 1\n")


def test_the_traceback_is_shown_on_request(capfd):
    assert _end(ConfigError("set A to 1"), show_traceback=True) == 2
    text = capfd.readouterr().err
    assert text.startswith("Traceback") and text.endswith("ConfigError: set A to 1\n")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_other_errors_pass(error):
    with pytest.raises(type(error)), exit_on_user_error():
        raise error


class _Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise OSError("no such file")
        except OSError as error:
            raise DatasetError("image 0\n  is absent") from error


def test_an_error_of_a_data_worker_is_its_message_alone(capfd):
    with pytest.raises(SystemExit), exit_on_user_error():
        list(DataLoader(_Broken(), num_workers=1))
    assert capfd.readouterr().err == "image 0\n  is absent\n"


def _log_error(error):
    """As Detectron2's training loop does."""
    try:
        raise error
    except Exception:
        TRAINING.exception("Exception during training:")


def test_the_log_of_a_training_has_the_message_alone(caplog):
    with exit_on_user_error():
        _log_error(ConfigError("set A to 1"))
        _log_error(ValueError("a bug"))
    mistake, bug = caplog.records
    assert mistake.getMessage() == "Training stops: set A to 1" and not mistake.exc_info
    assert bug.getMessage() == "Exception during training:" and bug.exc_info


@pytest.mark.parametrize("show_traceback", [False, True])
def test_the_log_keeps_tracebacks_where_asked_and_afterwards(caplog, show_traceback):
    with exit_on_user_error(show_traceback):
        if show_traceback:
            _log_error(ConfigError("set A to 1"))
    _log_error(ConfigError("set A to 1"))
    assert all(record.exc_info for record in caplog.records)
    assert len(caplog.records) == 1 + show_traceback
