# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The text of docs/zoo.md."""

import textwrap
from pathlib import Path

from .step import ROLES, YES

__all__ = ["LAZY_HEADING", "Results", "document"]

INTRODUCTION = """# Detectron2's model zoo under d2kd

Which configs of Detectron2's model zoo can teach, and which can be taught.
`python -m experiments.zoo docs/zoo.md` writes this page from real training steps on a CPU. Every
config is built as Detectron2 installs it, with random weights, and takes one step on images of 96 x
112 pixels, with 16 proposals of each. As a teacher it teaches a thin student of its kind of
backbone (FPN, C4, DC5, or RetinaNet's FPN). As a student it learns from a thin teacher of that
kind. "Yes" means that the student's own losses were equal, bit for bit, to those of plain
Detectron2 on the same batch, that each distillation loss was above 0, and that every gradient was
finite. "All losses" are `feature`, `cls` and `reg`. A number refers to the reasons below the table.

"""
LAZY_HEADING = "## LazyConfig files"
LAZY_INTRODUCTION = f"""{LAZY_HEADING}

The zoo's `.py` files, by the same steps. As a teacher a file is named by
`DISTILL.TEACHER.CONFIG_FILE`, and its student is a thin yaml's; FCOS has a thin FCOS as its
partner. As a student its detector is given to `Distiller.compose`. Files that differ only in their
schedule build the same network: one of them is run, and its row names the others.
`Misc/torchvision_imagenet_R_50.py` is left out, for it classifies images. "-" was not run.

"""
Results = dict[str, dict[str, str]]


def document(yamls: Results, lazies: Results, networks: dict[str, list[str]]) -> str:
    """The page of all results.

    Args:
        yamls, lazies: config -> column -> YES, or why not.
        networks: LazyConfig file -> the other files of the same network.
    """
    table, reasons = _table({x.removesuffix(".yaml"): row for x, row in yamls.items()})
    named = {_with_others(x, networks[x]): row for x, row in lazies.items()}
    lazy_table, lazy_reasons = _table(named)
    lines = [*table, "", "## Reasons", "", *reasons, "", LAZY_INTRODUCTION.strip(), ""]
    lines += [*lazy_table, "", "### Reasons of LazyConfig files", "", *lazy_reasons, ""]
    return INTRODUCTION + "\n".join(lines)


def _with_others(name: str, others: list[str]) -> str:
    return f"{name} (also {', '.join(Path(x).name for x in others)})" if others else name


def _table(results: Results) -> tuple[list[str], list[str]]:
    """The lines of a table, and of the reasons that it refers to."""
    reasons = list(dict.fromkeys(x for row in results.values() for x in row.values() if x != YES))
    lines = ["| config | " + " | ".join(ROLES.values()) + " |", "| --- |" + " --- |" * len(ROLES)]
    for name, row in results.items():
        cells = [_cell(row.get(key), reasons) for key in ROLES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    tried = [[row[key] for row in results.values() if key in row] for key in ROLES]
    counts = [f"{column.count(YES)} of {len(column)}" for column in tried]
    lines.append("| **yes** | " + " | ".join(counts) + " |")
    return lines, [_item(f"{i}. {text}") for i, text in enumerate(reasons, start=1)]


def _cell(found: str | None, reasons: list[str]) -> str:
    if found is None:
        return "-"
    return YES if found == YES else f"no ({reasons.index(found) + 1})"


def _item(text: str) -> str:
    return textwrap.fill(text, 100, subsequent_indent="   ", break_on_hyphens=False)
