# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The pages tell the truth: links lead somewhere, recipes run, printed commands exist."""

import functools
import importlib.util
import re
import subprocess
import sys

import pytest
import torch
from detectron2.config import get_cfg

from d2kd import add_d2kd_config
from d2kd.losses import DISTANCE_REGISTRY, MASK_REGISTRY
from d2kd.modeling.build import read_teacher_config
from d2kd.modeling.build_losses import build_distill_losses
from d2kd.modeling.compatibility import check_pair
from d2kd.structures import MaskInput
from tests.common import ROOT
from tests.common.helpers import build_pair, plain_cfg

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "datasets" / "README.md",
]
# Files of the README's five steps, which the reader writes.
WRITTEN_BY_THE_READER = {"mine.yaml", "mine_data.yaml", "mine_teacher.yaml"}
# And of the run that they start.
NOT_HERE = {*WRITTEN_BY_THE_READER, "output/mine/student.yaml"}
PROGRAMS = ("python ", "torchrun ", "make ")


def page_id(page):
    return str(page.relative_to(ROOT))


def without_fences(text):
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_fences(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(page, heading, language):
    """The fenced blocks of a language under a heading of a page."""
    section = (ROOT / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", section, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def commands():
    """(page, command) of every ``python``, ``torchrun`` and ``make`` command that is printed."""
    for page in PAGES:
        text = page.read_text()
        fences = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
        lines = [x.strip() for name, fence in fences if not name for x in fence.splitlines()]
        for command in lines + re.findall(r"`([^`\n]+)`", without_fences(text)):
            if command.startswith(PROGRAMS):
                yield page_id(page), command.split(" #")[0].strip()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_fences(page.read_text())):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: there is no such file"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{link}: there is no such heading"


def test_readme_fits_the_front_page():
    assert len((ROOT / "README.md").read_text().split()) <= 1000


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_lines_of_prose_have_at_most_100_columns(page):
    """A table's row, a link and a single piece of code cannot be broken."""
    lines = without_fences(page.read_text()).splitlines()
    unbreakable = re.compile(r"\||!\[|.*\]\(|\s*`[^`]+`$")
    assert not [x for x in lines if len(x) > 100 and not unbreakable.match(x)]


@functools.cache
def help_text(*program):
    """What a program prints for ``--help``; it must accept it."""
    command = [sys.executable, "-W", "ignore", *program, "--help"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout


def program_of(words):
    """("-m", module) or (script,), checked to be there, and the words after it."""
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), f"there is no module {words[1]}"
        return tuple(words[:2]), words[2:]
    assert (ROOT / words[0]).is_file(), f"there is no file {words[0]}"
    return (words[0],), words[1:]


def targets_of_make():
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page, command", sorted(set(commands())))
def test_printed_command_exists(page, command):
    words = command.split()
    if words[0] == "make":
        assert {x for x in words[1:] if "=" not in x} <= targets_of_make()
        return
    # torchrun's own options stand before the script.
    first = next(i for i, x in enumerate(words) if x == "-m" or x.endswith(".py"))
    program, arguments = program_of(words[first:])
    options = [x.split("=")[0].strip("[]") for x in arguments if x.startswith(("--", "[--"))]
    known = help_text(*program) if options else ""
    assert not [x for x in options if not re.search(rf"{x}\b", known)], command
    for path in re.findall(r"\S+\.yaml", " ".join(arguments)):
        assert path in NOT_HERE or (ROOT / path).is_file(), f"there is no {path}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_configs_and_modules_that_are_named_exist(page):
    """Paths in backquotes below configs/, d2kd/, tests/, tools/, docs/ and experiments/."""
    pattern = r"`((?:configs|d2kd|tests|tools|docs|experiments)/[\w+./-]*)`"
    named = re.findall(pattern, page.read_text())
    assert not [x for x in named if not (ROOT / x).exists()]


def test_the_recipe_for_a_distance_and_a_mask_works_as_printed():
    (code,) = blocks("docs/extending.md", "Add a distance or a mask", "python")
    (keys,) = blocks("docs/extending.md", "Add a distance or a mask", "yaml")
    exec(code, {})
    student, teacher = torch.zeros(2, 3, 4, 5), torch.full((2, 3, 4, 5), 2.0)
    # Huber at 2 with delta 0.5: 0.5 * (2 - 0.25).
    huber = DISTANCE_REGISTRY.get("huber")(student, teacher, delta=0.5)
    assert torch.allclose(huber, torch.full((2, 4, 5), 0.875))
    boxes, image = torch.tensor([[8.0, 0, 24, 16], [16, 0, 32, 8]]), torch.tensor([1, 1])
    mask = MASK_REGISTRY.get("boxes_only")(MaskInput((2, 4, 5), 8, (8,), boxes, image, None))
    expected = [[0, 1, 1, 1, 0], [0, 1, 1, 0, 0], [0] * 5, [0] * 5]
    assert mask[0].sum() == 0 and mask[1].tolist() == expected
    cfg = plain_cfg()
    cfg.merge_from_other_cfg(cfg.load_cfg(keys))
    _, student, teacher = build_pair()
    loss = build_distill_losses(cfg, plain_cfg(), student, teacher.model)
    assert loss["feature"].distance.keywords == {"delta": 0.5}


def test_the_yaml_of_the_five_steps_are_a_pair(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    names = ("mine_data.yaml", "mine_teacher.yaml", "mine.yaml")
    texts = blocks("README.md", "Distil your own pair in five steps", "yaml")
    for name, text in zip(names, texts, strict=True):
        (tmp_path / name).write_text(text)
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_file("mine.yaml")
    assert cfg.DISTILL.ENABLED and cfg.DATASETS.CUSTOM.mine_train.FORMAT == "coco"
    teacher = read_teacher_config(cfg)
    assert (cfg.MODEL.RESNETS.DEPTH, teacher.MODEL.RESNETS.DEPTH) == (50, 101)
    assert teacher.MODEL.WEIGHTS == f"{teacher.OUTPUT_DIR}/model_final.pth"
    check_pair(cfg, teacher, frozenset({"features", "logits", "deltas"}))


def test_the_python_of_the_last_step_loads_a_student(tmp_path, monkeypatch):
    """With Detectron2 alone: the printed lines name no d2kd."""
    (code,) = blocks("README.md", "Distil your own pair in five steps", "python")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    folder = tmp_path / "output" / "mine"
    folder.mkdir(parents=True)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    DetectionCheckpointer(build_model(cfg), str(folder)).save("model_final")
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    (folder / "student.yaml").write_text(cfg.dump())
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    assert found["predictor"].cfg.MODEL.WEIGHTS == cfg.MODEL.WEIGHTS


def test_the_lazyconfig_student_as_printed_is_composed(tmp_path):
    from detectron2.config import LazyConfig, instantiate
    from detectron2.model_zoo import get_config
    from detectron2.modeling import build_model

    from d2kd.engine.lazy_keys import lazy_keys
    from d2kd.modeling import Distiller

    (code,) = blocks("docs/lazyconfig.md", "A LazyConfig student", "python")
    (tmp_path / "my_student.py").write_text(code)
    lazy = LazyConfig.load(str(tmp_path / "my_student.py"))
    assert lazy_keys(lazy).DATASETS.TRAIN == ("coco_2017_train",)
    teacher_cfg = get_config(lazy.distill.teacher.config_file)
    teacher_cfg.MODEL.DEVICE = "cpu"
    losses = {name: instantiate(loss) for name, loss in lazy.distill.losses.items()}
    parts = {"student": instantiate(lazy.model), "teacher": build_model(teacher_cfg)}
    model = Distiller.compose(**parts, losses=losses)
    assert model.schedules["cls"](0.5) == 0.25 and model.required.requires == {"features", "logits"}


def test_the_trainer_of_one_s_own_as_printed_trains():
    from d2kd.modeling import load_teacher
    from tests.common.helpers import make_batch, run

    first, loop = blocks("docs/lazyconfig.md", "A trainer or loop of your own", "python")
    stock, _, teacher = build_pair()
    given = {"student": stock, "teacher": teacher.model, "loader": [make_batch()] * 2}
    given |= {"max_iter": 1, "load_teacher": load_teacher}
    exec(first, given)
    assert given["trainer"].storage.history("loss_weight/feature").latest() == 0.5
    exec(loop, given)
    assert run(given["model"], make_batch())["loss_distill_feature"] > 0
