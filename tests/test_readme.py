# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The README is true: its recipe is followed to the letter."""

import re

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

README = (ROOT / "README.md").read_text()


def blocks(heading, language):
    """The fenced blocks of a language under a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", section, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_within_the_project_lead_somewhere(link):
    assert link.startswith("http") or (ROOT / link).exists()


def test_the_recipe_for_a_distance_and_a_mask_works_as_printed():
    (code,) = blocks("Add a distance or a mask", "python")
    (keys,) = blocks("Add a distance or a mask", "yaml")
    exec(code, {})
    student, teacher = torch.zeros(2, 3, 4, 5), torch.full((2, 3, 4, 5), 2.0)
    # Huber at 2 with delta 0.5: 0.5 * (2 - 0.25).
    huber = DISTANCE_REGISTRY.get("huber")(student, teacher, delta=0.5)
    assert torch.allclose(huber, torch.full((2, 4, 5), 0.875))
    boxes, image = torch.tensor([[8.0, 0, 24, 16], [16, 0, 32, 8]]), torch.tensor([1, 1])
    mask = MASK_REGISTRY.get("boxes_only")(MaskInput((2, 4, 5), 8, (8,), boxes, image, None))
    assert mask[0].sum() == 0 and mask[1].tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]] + 2 * [
        [0] * 5
    ]
    cfg = plain_cfg()
    cfg.merge_from_other_cfg(cfg.load_cfg(keys))
    _, student, teacher = build_pair()
    loss = build_distill_losses(cfg, student, teacher.model)
    assert loss["feature"].distance.keywords == {"delta": 0.5}


def test_the_yaml_of_the_five_steps_are_a_pair(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    names = ("mine_data.yaml", "mine_teacher.yaml", "mine.yaml")
    for name, text in zip(names, blocks("Distil your own pair in five steps", "yaml")):
        (tmp_path / name).write_text(text)
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_file("mine.yaml")
    assert cfg.DISTILL.ENABLED and cfg.DATASETS.CUSTOM.mine_train.FORMAT == "coco"
    teacher = read_teacher_config(cfg)
    assert (cfg.MODEL.RESNETS.DEPTH, teacher.MODEL.RESNETS.DEPTH) == (50, 101)
    assert teacher.MODEL.WEIGHTS == f"{teacher.OUTPUT_DIR}/model_final.pth"
    check_pair(cfg, teacher, frozenset({"features", "logits", "deltas"}))
