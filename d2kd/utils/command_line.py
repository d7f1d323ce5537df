# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How a command of d2kd ends when its user has made a mistake: one message, exit status 2."""

import logging
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import D2kdError

__all__ = [
    "USER_ERROR_STATUS",
    "add_import_option",
    "add_traceback_option",
    "exit_on_user_error",
]

# As argparse's, of options that it does not know.
USER_ERROR_STATUS = 2
# Detectron2 logs every exception of a training here, with its traceback.
_TRAINING_LOGGER = "detectron2.engine.train_loop"


def add_traceback_option(parser: ArgumentParser) -> None:
    """Add ``--traceback``, the argument of ``exit_on_user_error``."""
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the code an error was found"
    )


def add_import_option(parser: ArgumentParser) -> None:
    """Add ``--import``, repeatable, to ``modules``: what ``load_config`` imports first."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="a Python module of your own that registers parts or data sets, and may add keys by "
        "its function add_config; repeatable",
    )


@contextmanager
def exit_on_user_error(show_traceback: bool = False) -> Iterator[None]:
    """End the program with the message alone where a D2kdError is raised inside.

    Other exceptions are bugs and keep their traceback.

    Args:
        show_traceback: print the traceback before the message (``--traceback``).

    Raises:
        SystemExit: 2, after a D2kdError.
    """
    training = logging.getLogger(_TRAINING_LOGGER)
    if not show_traceback:
        training.addFilter(_drop_traceback)
    try:
        yield
    except D2kdError as error:
        if show_traceback:
            traceback.print_exc()
        else:
            print(_message(error), file=sys.stderr, flush=True)
        sys.exit(USER_ERROR_STATUS)
    finally:
        training.removeFilter(_drop_traceback)


def _drop_traceback(record: logging.LogRecord) -> bool:
    """Log a user's mistake in a training by its message alone."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, D2kdError):
        record.msg, record.args, record.exc_info = "Training stops: %s", (_message(error),), None
    return True


def _message(error: D2kdError) -> str:
    """The message alone; PyTorch puts a traceback before it if it is raised in a data worker."""
    text, kind = str(error), type(error)
    name = f"\n{kind.__module__}.{kind.__qualname__}: "
    return text.split(name)[-1].rstrip() if text.startswith("Caught ") else text
