"""The output folder, made and tried before anything is trained."""

import os
import tempfile

__all__ = ["OutputError", "prepare_output"]


class OutputError(OSError):
    """OUTPUT_DIR cannot be written to."""


def prepare_output(folder: str) -> None:
    """
    Make OUTPUT_DIR if need be, and write a file into it.

    Raises:
        OutputError: with what the operating system says: no permission, no space, no folder.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".d2kd_") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"OUTPUT_DIR {folder} cannot be written: {error}. Set it to a folder that can, with "
            "space for the checkpoints."
        ) from error
