# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A pseudo-terminal in place of the output, and what a reader sees on it."""

import os
import re
import threading
from contextlib import contextmanager

import pytest

# A colour, or a movement of the cursor.
ESCAPE = re.compile(r"\x1b\[([\d;]*)([A-Za-z])")


@contextmanager
def terminal(columns=80):
    """Replace sys.stdout by a terminal; a list that holds all that was written in the end."""
    ours, theirs = os.openpty()
    written, text = [], []

    def read():
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            written.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        with os.fdopen(theirs, "w", buffering=1) as stream:
            patch.setattr("sys.stdout", stream)
            yield text
    reader.join()
    os.close(ours)
    text.append(b"".join(written).decode())


def screen(text, columns=80):
    """The lines that are left on a terminal of this width after this was written."""
    lines, row, column, at = [[]], 0, 0, 0
    while at < len(text):
        escape = ESCAPE.match(text, at)
        at = escape.end() if escape else at + 1
        if escape:
            row -= int(escape[1] or 1) if escape[2] == "A" else 0
            if escape[2] == "K":
                del lines[row][column:]
            continue
        letter = text[at - 1]
        if letter == "\r":
            column = 0
        elif letter == "\n":
            row += 1
        else:
            if column == columns:
                row, column = row + 1, 0
            lines += [[] for _ in range(row + 1 - len(lines))]
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = letter
            column += 1
        lines += [[] for _ in range(row + 1 - len(lines))]
    return ["".join(line).rstrip() for line in lines]
