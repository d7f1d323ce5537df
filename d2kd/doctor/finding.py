# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a check returns, and how it is printed."""

import enum
import textwrap
from typing import NamedTuple

__all__ = ["Finding", "Status", "error", "ok", "render", "warning"]

WIDTH = 110
CHECK_WIDTH = 18


class Status(enum.Enum):
    """How a finding is rated."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(NamedTuple):
    """One row of the doctor's table.

    Attributes:
        status: an ERROR makes the training impossible or pointless.
        check: what was examined, in one or two words.
        text: what was found.
        advice: what to do; empty if there is nothing to do.
    """

    status: Status
    check: str
    text: str
    advice: str = ""


def ok(check: str, text: str, advice: str = "") -> Finding:
    """A finding that needs no action."""
    return Finding(Status.OK, check, text, advice)


def warning(check: str, text: str, advice: str) -> Finding:
    """A finding to look at before training."""
    return Finding(Status.WARNING, check, text, advice)


def error(check: str, text: str, advice: str = "") -> Finding:
    """A finding that makes training impossible or pointless."""
    return Finding(Status.ERROR, check, text, advice)


def render(finding: Finding) -> str:
    """Format one row; the advice stands below the text, after an arrow."""
    head = f"{finding.status.value:<8}{finding.check:<{CHECK_WIDTH}}"
    lines: list[str] = []
    for text, mark in ((finding.text, ""), (finding.advice, "-> ")):
        for paragraph in text.splitlines():
            lines += textwrap.wrap(
                mark + paragraph.strip(), WIDTH - len(head), break_on_hyphens=False
            )
            mark = ""
    return head + f"\n{' ' * len(head)}".join(lines)
