"""Imports go down only: a loss knows no detector, a detector no trainer, the maths nobody."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "d2kd"
# The first pattern that a module's dotted name starts with decides.
FLOORS = [
    ("losses.feature", 2),
    ("losses.classification", 2),
    ("losses.regression", 2),
    ("losses", 0),
    ("structures", 1),
    ("layers", 1),
    ("config", 3),
    ("data", 3),
    ("modeling", 4),
    ("engine", 5),
    ("doctor", 6),
    ("__init__", 6),
]
# What the lower floors may take from Detectron2.
ALLOWED = {
    0: ("detectron2.utils.registry",),
    1: ("detectron2.layers",),
    2: ("detectron2.structures",),
    3: tuple(f"detectron2.{x}" for x in ("config", "data", "evaluation", "structures", "utils")),
}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def _name(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _floor(name):
    return next(floor for start, floor in FLOORS if (name + ".").startswith(start.rstrip(".")))


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
                target = ".".join([*base, *(node.module or "").split("."), alias.name])
                yield "d2kd." + target.replace("..", ".").strip(".")


def _resolve(name):
    """The module in ``d2kd.a.b.name``, which may be a name inside d2kd.a.b; None for others."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        inside = PACKAGE.joinpath(*parts[:length])
        if inside.with_suffix(".py").exists() or inside.is_dir():
            return ".".join(parts[:length])
    return "__init__"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down(path):
    floor = _floor(_name(path))
    for name in _imports(path):
        if name.split(".")[0] == "d2kd":
            assert _floor(_resolve(name)) <= floor, f"{path} is on floor {floor} and imports {name}"
        elif name.split(".")[0] == "detectron2" and floor in ALLOWED:
            assert name.startswith(ALLOWED[floor]), f"{path} is on floor {floor} and imports {name}"


def test_the_check_sees_what_is_imported():
    seen = set(_imports(Path("engine/trainer.py")))
    assert "d2kd.config.plain_config" in seen and "detectron2.engine" in seen
    assert _resolve("d2kd.modeling.build.build_teacher") == "modeling.build"
    floors = [_floor(_name(Path(p))) for p in ("losses/masks.py", "losses/feature.py")]
    assert floors == [0, 2] and _floor(_name(Path("engine/__init__.py"))) == 5


def test_losses_and_records_are_built_from_plain_values():
    for path in MODULES:
        if _floor(_name(path)) <= 2:
            assert "cfg" not in (PACKAGE / path).read_text(), f"{path} reads a config"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_files_are_short(path):
    assert len((PACKAGE / path).read_text().splitlines()) <= 250
