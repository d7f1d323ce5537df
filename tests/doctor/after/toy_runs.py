# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Output folders of trainings, real ones of two steps and made-up ones."""

from pathlib import Path

import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from d2kd.data import register_custom_datasets
from d2kd.engine import DistillTrainer
from d2kd.modeling import Distiller
from tests.common.helpers import K, write_coco_set

CLASSES = [f"class {i}" for i in range(K)]


def declare(cfg, folder):
    """Let a config train and test on the toy COCO set "mine"."""
    folder.mkdir(exist_ok=True)
    content = yaml.safe_load(cfg.dump())
    declared = dict(write_coco_set(folder))
    content["DATASETS"].update(CUSTOM={"mine": declared}, TRAIN=["mine"], TEST=["mine"])
    found = cfg.clone()
    found.merge_from_other_cfg(cfg.load_cfg(yaml.safe_dump(content)))
    return found


def write_config(cfg, folder):
    folder.mkdir(parents=True, exist_ok=True)
    cfg.OUTPUT_DIR = str(folder)
    (folder / "config.yaml").write_text(cfg.dump())


def train(cfg, folder):
    """As train_net.py does; the catalogs are left as they were."""
    before = {*DatasetCatalog.list(), *MetadataCatalog.list()}
    write_config(cfg, folder)
    register_custom_datasets(cfg)
    seed_all_rng(cfg.SEED)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in set(catalog.list()) - before:
            catalog.remove(name)


def make_up(cfg, folder, seed=0, weights=None, classes=CLASSES):
    """A run that has not been trained: its students are random."""
    write_config(cfg, folder)
    torch.manual_seed(seed)
    model = Distiller(cfg) if cfg.DISTILL.ENABLED else build_model(cfg)
    student = model.student if cfg.DISTILL.ENABLED else model
    if weights is not None:
        student.load_state_dict(weights)
    content = {"model": student.state_dict(), "iteration": cfg.SOLVER.MAX_ITER - 1}
    content["classes"] = {"names": classes}
    if cfg.DISTILL.ENABLED:
        content["distill_losses"] = model.distill_losses.state_dict()
    torch.save(content, folder / "model_final.pth")
    return content


def copy_run(folder: Path, to: Path):
    """Another folder of the same run."""
    to.mkdir()
    for path in folder.rglob("*"):
        target = to / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif not path.name.startswith("events"):
            target.write_bytes(path.read_bytes())
    return to
