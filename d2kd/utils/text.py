# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Small pieces of messages: a few names of many, and what was likely meant."""

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "first_few", "first_line"]


def first_few(names: Iterable[str], count: int = 5) -> str:
    """The first few different names, for a message."""
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:count]) + (", ..." if len(unique) > count else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' when something like the word is known, else nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def first_line(error: Exception, most: int = 300) -> str:
    """What an exception says, without the advice that PyTorch adds below; its kind if nothing."""
    # str() of a KeyError is in quotes.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return line if len(line) <= most else line[:most] + "..."
