# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""--import: the user's modules register parts and add keys, in both configs and every process."""

import subprocess
import sys

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY

from d2kd.benchmark.options import as_arguments, parse_args
from d2kd.config import user_modules
from d2kd.config.load import load_config
from d2kd.config.student import dump_student_config, student_config
from d2kd.doctor.config_checks import read_config
from d2kd.losses import MASK_REGISTRY
from d2kd.modeling.build import read_teacher_config
from d2kd.utils.errors import ConfigError
from tests.common import ROOT
from tests.common.helpers import distill_cfg

MODULE = """
import os
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, build_resnet_backbone

from d2kd.losses import register_mask

(Path(__file__).parent / f"{os.getpid()}.pid").touch()


@BACKBONE_REGISTRY.register()
def build_mine_backbone(cfg, input_shape):
    return build_resnet_backbone(cfg, input_shape)


@register_mask()
def mine_everywhere(inputs):
    return torch.ones(inputs.size[0], *inputs.size[1:])


def add_config(cfg):
    cfg.MODEL.MINE = CfgNode({"WIDTH": 8})
    cfg.SOLVER.TWIST = 0.5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The folder of a module "mine", which is the current one; all traces go after the test."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(user_modules, "_IMPORTED", [])
    for registry in (BACKBONE_REGISTRY, MASK_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    yield tmp_path
    sys.modules.pop("mine", None)


def _write(folder, teacher_files, **keys):
    cfg = distill_cfg(teacher_files, "OUTPUT_DIR", str(folder / "out"))
    cfg.DISTILL.FEATURE.MASK = "mine_everywhere"
    path = folder / "student.yaml"
    path.write_text(cfg.dump() + "".join(f"{key}: {value}\n" for key, value in keys.items()))
    return str(path)


def test_its_parts_and_keys_are_known_to_student_and_teacher(module, teacher_files, tmp_path):
    path = _write(tmp_path, teacher_files)
    with pytest.raises(ConfigError, match="MASK is 'mine_everywhere'.*|no such keys"):
        load_config(path, ["MODEL.MINE.WIDTH", "16"])
    cfg = load_config(path, ["MODEL.MINE.WIDTH", "16"], ["mine"])
    assert (cfg.MODEL.MINE.WIDTH, cfg.SOLVER.TWIST) == (16, 0.5)
    assert "build_mine_backbone" in BACKBONE_REGISTRY
    assert read_teacher_config(cfg).MODEL.MINE.WIDTH == 8
    # A second call neither imports nor registers it again.
    assert load_config(path, (), ["mine", "mine"]).MODEL.MINE.WIDTH == 8


def test_its_keys_stay_in_student_yaml_which_names_it(module, teacher_files, tmp_path):
    cfg = load_config(_write(tmp_path, teacher_files), ["MODEL.MINE.WIDTH", "16"], ["mine"])
    text = dump_student_config(student_config(cfg))
    assert text.startswith("# Read after mine.add_config, which adds MODEL.MINE, SOLVER.TWIST.\n")
    plain = get_cfg()
    sys.modules["mine"].add_config(plain)
    plain.merge_from_other_cfg(plain.load_cfg(text))
    assert plain.MODEL.MINE.WIDTH == 16 and "DISTILL" not in plain


def test_a_module_without_keys_needs_no_function(module):
    (module / "bare.py").write_text("x = 1\n")
    user_modules.import_modules(["bare"])
    assert user_modules.user_configs() == {}
    del sys.modules["bare"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("nowhere", "--import nowhere: there is no module 'nowhere' in .* or on PYTHONPATH"),
        ("mine.parts", "--import mine.parts: there is no module 'mine.parts'"),
        ("needs", "--import needs: it imports 'of_another_planet', which is not installed"),
        ("mine.py", "--import mine.py: write the name of the module, mine, and run"),
        ("./mine.py", "write the name of the module, mine, and run"),
    ],
)
def test_what_cannot_be_imported_is_named(module, name, text):
    (module / "needs.py").write_text("import of_another_planet\n")
    with pytest.raises(ConfigError, match=text):
        load_config("a.yaml", (), [name])
    (finding,) = read_config("a.yaml", (), [name])[1]
    assert finding.status.value == "error" and finding.text.startswith(f"--import {name}")


def test_a_module_that_fails_keeps_its_own_error(module):
    (module / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        user_modules.import_modules(["broken"])


def test_the_option_is_repeatable_and_reaches_the_benchmark_s_processes():
    given = ["--config-file", "a.yaml", "--import", "mine", "--import", "yours.parts", "SEED", "3"]
    args = parse_args("", given)
    assert (args.modules, args.opts) == (["mine", "yours.parts"], ["SEED", "3"])
    assert parse_args("", as_arguments(args)).modules == args.modules


@pytest.mark.parametrize(
    "script, options, processes",
    [("train_net.py", ["--num-processes", "2"], 3), ("tools/doctor.py", [], 1)],
)
def test_every_process_of_a_command_imports_it(module, teacher_files, script, options, processes):
    path = _write(module, teacher_files)
    words = [sys.executable, str(ROOT / script), "--config-file", path, "--import", "mine"]
    # Each process reads the config and then finds that this is not there.
    words += [*options, "DATASETS.TRAIN", "('nowhere',)", "DISTILL.TEACHER.WEIGHTS", "nowhere.pth"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "nowhere" in done.stdout + done.stderr and "no such keys" not in done.stderr
    assert len(list(module.glob("*.pid"))) == processes, done.stderr
