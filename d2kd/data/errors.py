"""What is raised when a declared data set cannot be used; every message names a file or a key."""

__all__ = ["DatasetError", "DatasetFileNotFoundError"]


class DatasetError(ValueError):
    """A data set is declared or written wrongly."""


class DatasetFileNotFoundError(DatasetError, FileNotFoundError):
    """A file or folder of a data set is not there."""
