# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Imports go down only: a loss knows no detector, a detector no trainer, the maths nobody."""

import ast
from pathlib import Path

import pytest

from tests.common import ROOT

PACKAGE = ROOT / "d2kd"
# Lowest first; packages of one line do not import each other.
FLOORS = [
    ("utils", "structures"),
    ("losses", "model_zoo"),
    ("config",),
    ("data",),
    ("checkpoint", "evaluation"),
    ("modeling",),
    ("visualize",),
    ("engine",),
    ("benchmark", "cache"),
    ("doctor", "export"),
    ("__init__",),
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# Within the losses, the maths does not know the modules that call it.
LOSS_MODULES = ("losses.feature", "losses.classification", "losses.regression")
# What the lower floors may take from Detectron2.
ALLOWED = {
    "utils": ("detectron2.utils", "detectron2"),
    "structures": (),
    "losses": ("detectron2.layers", "detectron2.structures"),
    # Of the models, config knows which class a meta-architecture's name stands for.
    "config": (
        *("detectron2.config", "detectron2.utils", "detectron2.model_zoo"),
        "detectron2.modeling.meta_arch.build",
    ),
}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def _name(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _package(name):
    return name.split(".")[0]


def _imports(path):
    """Dotted names of what a module imports, its own package's relative to the package."""
    package = path.parent.parts
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            for alias in node.names:
                yield ".".join(["d2kd", *base, *filter(None, [node.module]), alias.name])


def _resolve(name):
    """The module in ``d2kd.a.b.name``, which may be a name inside d2kd.a.b; None for others."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        inside = PACKAGE.joinpath(*parts[:length])
        if inside.with_suffix(".py").exists() or inside.is_dir():
            return ".".join(parts[:length])
    return "__init__"


def _is_init(name):
    return (PACKAGE / name.replace(".", "/") / "__init__.py").exists()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down(path):
    name = _name(path)
    for imported in _imports(path):
        if imported.split(".")[0] == "d2kd":
            target = _resolve(imported)
            down = FLOOR_OF[_package(target)] < FLOOR_OF[_package(name)]
            same = _package(target) == _package(name)
            assert down or same, f"{path} imports {imported}, which is not on a lower floor"
        elif imported.split(".")[0] == "detectron2" and _package(name) in ALLOWED:
            allowed = ALLOWED[_package(name)]
            assert imported.startswith(allowed), f"{path} must not import {imported}"


def test_no_import_cycle():
    """Among modules; a package's ``__init__`` counts as what it imports."""
    graph = {}
    for path in MODULES:
        targets = {_resolve(x) for x in _imports(path) if x.split(".")[0] == "d2kd"}
        graph[_name(path)] = targets - {_name(path)}
    done, under_way = set(), []

    def visit(name):
        if name in done:
            return
        assert name not in under_way, " -> ".join([*under_way, name])
        under_way.append(name)
        for target in sorted(graph.get(name, ())):
            visit(target)
        done.add(under_way.pop())

    for name in sorted(graph):
        visit(name)


def test_the_maths_does_not_know_the_loss_modules():
    for path in MODULES:
        name = _name(path)
        if _package(name) == "losses" and name not in LOSS_MODULES:
            assert not [x for x in _imports(path) if _resolve(x) in LOSS_MODULES], path


def test_the_check_sees_what_is_imported():
    seen = set(_imports(Path("engine/trainer.py")))
    assert "d2kd.checkpoint.build_checkpointer" in seen
    assert _resolve("d2kd.modeling.build.build_teacher") == "modeling.build"


def test_losses_and_records_are_built_from_plain_values():
    for path in MODULES:
        if FLOOR_OF[_package(_name(path))] <= FLOOR_OF["losses"]:
            assert "cfg" not in (PACKAGE / path).read_text(), f"{path} reads a config"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_files_are_short(path):
    assert len((PACKAGE / path).read_text().splitlines()) <= 250


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=str)
def test_a_folder_stands_where_three_files_would_share_a_prefix(folder):
    prefixes = [path.stem.split("_")[0] for path in MODULES if path.parent == folder]
    assert not [p for p in set(prefixes) - {""} if prefixes.count(p) >= 3]
