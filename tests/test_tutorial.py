# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The notebook docs/tutorial.ipynb: its code fits d2kd, and it runs from beginning to end."""

import ast
import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

from d2kd.config.load import all_keys, load_config
from d2kd.data.datasets import synthetic_shapes
from d2kd.data.datasets.declared import register_custom_datasets
from d2kd.modeling.build import read_teacher_config
from d2kd.modeling.compatibility import check_pair
from tests.common import ROOT
from tests.common.helpers import plain_cfg
from tests.test_readme import help_text, program_of

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
CAN_EXPORT = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def code_cells():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def sources(magic):
    """The text of the cells that begin with a magic, without that line; "" for plain Python."""
    found = []
    for cell in code_cells():
        first, _, rest = "".join(cell["source"]).partition("\n")
        if magic and first.startswith(magic):
            found.append((first, rest))
        elif not magic and not first.startswith("%%"):
            found.append(("", f"{first}\n{rest}"))
    return found


def shell_commands():
    """The commands of the cells, each in one line, without what filters their output."""
    joined = "".join(text.replace("\\\n", " ") + "\n" for _, text in sources("%%bash"))
    lines = [" ".join(line.split(" 2>&1 |")[0].split()) for line in joined.splitlines()]
    return [line for line in lines if line and line != "set -o pipefail"]


def test_a_command_that_fails_stops_the_notebook():
    """Bash gives the status of a pipe's last command, unless told otherwise."""
    for _, text in sources("%%bash"):
        assert "|" not in text or text.startswith("set -o pipefail\n")


def test_outputs_are_not_kept():
    for cell in code_cells():
        assert cell["outputs"] == [] and cell["execution_count"] is None


def test_lines_have_at_most_100_columns():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(len(line) <= 101 for cell in cells for line in cell["source"])  # with its end


def test_python_compiles():
    assert len(sources("")) >= 5
    for _, text in sources(""):
        ast.parse(text)


@pytest.mark.parametrize("command", shell_commands())
def test_command_exists(command):
    words = command.split()
    assert words[0] == "python"
    program, arguments = program_of(words[1:])
    known = help_text(*program)
    assert not [x for x in arguments if x.startswith("--") and not re.search(rf"{x}\b", known)]
    keys = {x for x in arguments if re.fullmatch(r"[A-Z_]+(\.[A-Z_]+)*", x)}
    assert keys <= set(all_keys(plain_cfg()))
    # A cell sets $DEVICE; the export is for the CPU.
    assert "MODEL.DEVICE $DEVICE" in command or "d2kd.export" in program


def write_yaml_files(folder):
    for first, text in sources("%%writefile"):
        (folder / first.split()[1]).write_text(text)
    (folder / "configs").symlink_to(ROOT / "configs")


def test_configs_are_a_pair(tmp_path, monkeypatch, clean_catalogs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_yaml_files(tmp_path)
    synthetic_shapes.generate(Path("data"), {"train": 3, "test": 1})
    cfg = load_config("distilled.yaml")
    register_custom_datasets(cfg)
    assert cfg.DISTILL.ENABLED and cfg.DATASETS.TRAIN == ("mine_train",)
    teacher = read_teacher_config(cfg)
    assert teacher.MODEL.WEIGHTS == f"{load_config('teacher.yaml').OUTPUT_DIR}/model_final.pth"
    check_pair(cfg, teacher, frozenset({"features"}))


def test_setup_without_d2kd_names_what_to_set(tmp_path, monkeypatch):
    """The first cell where d2kd is not installed; it must not take a clone for the package."""
    (_, text), *_ = sources("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="set REPOSITORY"):
        exec(text, {})


def test_setup_clones_and_installs(tmp_path, monkeypatch):
    (_, text), *_ = sources("")
    text = text.replace('REPOSITORY = ""', 'REPOSITORY = "https://example.org/d2kd.git"')
    called = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setattr("subprocess.run", lambda command, check: called.append(command))
    exec(text, {})
    clone, install = ([str(x) for x in command] for command in called)
    assert clone[:2] == ["git", "clone"] and clone[-2] == "https://example.org/d2kd.git"
    assert install[1:4] == ["-m", "pip", "install"] and f"{clone[-1]}[export]" in install
    # The words after `pip install` are those of the README, below the clone.
    assert install[-3] == f"{clone[-1]}/packaging/detectron2" and install[-2] == "-e"


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    """It takes 160 seconds of CPU time."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.getenv("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if not CAN_EXPORT:
        notebook.cells = [x for x in notebook.cells if "-m d2kd.export" not in x.source]
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=place).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    for name in ("teacher", "baseline", "distilled"):
        assert re.search(rf"^{name} +\d+\.\d +\d+\.\d +\d+\.\d$", printed, re.MULTILINE), name
    folder = tmp_path / "d2kd_tutorial"
    assert (folder / "detections.png").stat().st_size > 10000
    assert (folder / "student.onnx").is_file() == CAN_EXPORT
