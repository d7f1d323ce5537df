# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A user's mistake, in six kinds; every message names a file or key and what to set it to."""

__all__ = [
    "ConfigError",
    "D2kdError",
    "DatasetError",
    "ExportError",
    "PairMismatchError",
    "ResumeError",
    "WeightsError",
]


class D2kdError(ValueError):
    """A set-up that cannot be used. ``train_net.py`` prints it without a traceback."""


class ConfigError(D2kdError):
    """A config file, a key or a command-line option cannot be used."""


class WeightsError(D2kdError):
    """A checkpoint is absent, unreadable, incomplete, or cannot be written."""


class PairMismatchError(D2kdError):
    """Student and teacher do not fit each other, or an enabled loss does not fit them."""


class DatasetError(D2kdError):
    """A data set is declared or written wrongly, or one of its files is absent."""


class ResumeError(D2kdError):
    """A run cannot be resumed from its checkpoint."""


class ExportError(D2kdError):
    """An exported file does not agree with the detector that it was made from."""
