# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What moves on a terminal: a line that is written over, and bars; the log stays whole above them.

Where the output is no terminal, nothing of this is shown: Detectron2's log lines say it all.
"""

import logging
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm

__all__ = ["Line", "fit", "loss_terms", "open_bar", "progress", "shows_progress"]

# What the line and the bars say too, by the end of the logger's name and the start of the text.
_REPLACED = (("utils.events", ""), ("evaluation.evaluator", "Inference done "))


def shows_progress() -> bool:
    """Is the output a terminal?"""
    return sys.stdout.isatty()


def loss_terms(values: Mapping[str, float]) -> list[str]:
    """The losses among logged values, as "cls 0.51"; weights and ratios of losses are left out."""
    return [
        f"{name.removeprefix('loss_')} {value:.3g}"
        for name, value in values.items()
        if name.startswith("loss_") and "/" not in name
    ]


def fit(items: Sequence[str], width: int) -> str:
    """The first items, as many as fit into a line of the terminal, the last of them whole."""
    text = ""
    for item in items:
        longer = f"{text}  {item}" if text else item
        # A terminal wraps a line that fills it.
        if len(longer) >= width:
            break
        text = longer
    return text


class _AboveTheBar:
    """A stream for log handlers: what is written stands above all bars."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> None:
        tqdm.write(text, file=self.stream, end="")

    def flush(self) -> None:
        self.stream.flush()


def _is_new(record: logging.LogRecord) -> bool:
    """Does a log line say more than the line or bar below it?"""
    text = record.getMessage()
    return not any(
        record.name.endswith(name) and text.startswith(start) for name, start in _REPLACED
    )


@contextmanager
def _log_above() -> Iterator[None]:
    """Let the loggers that write to the terminal write above the bars; files get all lines."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    console = [
        (handler, handler.stream)
        for handler in handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)
    ]
    try:
        for handler, stream in console:
            handler.setStream(_AboveTheBar(stream))
            handler.addFilter(_is_new)
        yield
    finally:
        for handler, stream in console:
            handler.setStream(stream)
            handler.removeFilter(_is_new)


def _create(**options: Any) -> tqdm:
    """Of the terminal's size, or 80 columns where it tells none, to which tqdm would not write."""
    size = shutil.get_terminal_size()
    # A terminal wraps a line that fills it.
    columns = size.columns - 1
    return tqdm(file=sys.stdout, leave=False, ncols=columns, nrows=size.lines, **options)


class Line:
    """The last line of the terminal, which is written over; of several one is shown at a time."""

    _shown: "Line | None" = None

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._open = ExitStack()

    def show(self, items: Sequence[str]) -> None:
        """Write these, as many as fit; nothing where the output is no terminal."""
        if not shows_progress():
            return
        if Line._shown is not self:
            hide_line()
            self._open.enter_context(_log_above())
            self._bar = self._open.enter_context(_create(bar_format="{desc}"))
            Line._shown = self
        # The user may change the width while the line is shown.
        width = self._bar.ncols = shutil.get_terminal_size().columns
        self._bar.set_description_str(fit(items, width))

    def hide(self) -> None:
        """Leave the terminal to what is printed next; ``show`` brings the line back."""
        if Line._shown is self:
            Line._shown = None
            self._open.close()


def hide_line() -> None:
    """Hide the line that is shown, if there is one."""
    if Line._shown is not None:
        Line._shown.hide()


def open_bar(total: int, description: str, unit: str) -> tqdm:
    """A bar that its owner updates and closes; it is not drawn where the output is no terminal."""
    return _create(total=total, desc=description, unit=unit, disable=not shows_progress())


def progress(items: Iterable[Any], total: int, description: str, unit: str) -> Iterator[Any]:
    """The items, with a bar below the log while they are gone through."""
    if not shows_progress():
        yield from items
        return
    hide_line()
    with _log_above(), open_bar(total, description, unit) as bar:
        for item in items:
            yield item
            bar.update()
