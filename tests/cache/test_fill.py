# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A cache that was filled ahead serves a training, whenever the filling was killed."""

import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from d2kd.cache import command
from d2kd.cache.fill import fill_cache, read_config
from d2kd.config.load import load_config
from d2kd.data.map_cache.stores import FolderStore
from d2kd.engine import DistillTrainer
from d2kd.utils.errors import ConfigError
from tests.common.helpers import count_calls, distill_cfg, write_coco_set

IMAGES = 6


@pytest.fixture
def config(teacher_files, tmp_path):
    """The path of a config with a data set of its own, and its cache's folder."""
    (tmp_path / "images").mkdir()
    custom = {"six": write_coco_set(tmp_path / "images", IMAGES)}
    cfg = distill_cfg(
        teacher_files, "DATASETS.TRAIN", ("six",), "OUTPUT_DIR", str(tmp_path / "out")
    )
    cfg.INPUT.MIN_SIZE_TRAIN = (48, 64)
    cfg.DISTILL.TEACHER.CACHE = str(tmp_path / "cache")
    content = yaml.safe_load(cfg.dump())
    content["DATASETS"]["CUSTOM"] = custom
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    yield path
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for catalog in (DatasetCatalog, MetadataCatalog):
        if "six" in catalog.list():
            catalog.remove("six")


ENTRIES = IMAGES * 2 * 2


def _contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_a_filled_cache_runs_no_teacher_in_training(config, tmp_path, capsys):
    command.main(["--config-file", str(config)])
    assert f"{ENTRIES} entries, {ENTRIES} of them computed" in capsys.readouterr().out
    assert fill_cache(str(config), []) == (ENTRIES, 0)
    cfg = load_config(str(config), ["SOLVER.MAX_ITER", 12, "SOLVER.CHECKPOINT_PERIOD", 100])
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=False)
    (runs,) = count_calls(trainer.model.teacher.model.backbone)
    trainer.train()
    cache = trainer.model.teacher.cache
    # The answer to padding, which the batches of two sizes need, is one run of the teacher.
    assert cache.misses == 0 and cache.hits == 24 and len(runs) <= 1


def test_several_processes_fill_the_same(config, tmp_path):
    assert fill_cache(str(config), []) == (ENTRIES, ENTRIES)
    expected = _contents(tmp_path / "cache")
    other = ["DISTILL.TEACHER.CACHE", str(tmp_path / "other")]
    assert fill_cache(str(config), other, processes=2) == (ENTRIES, ENTRIES)
    assert _contents(tmp_path / "other") == expected and len(expected) == ENTRIES


def _kill_over_and_over(config, tmp_path, kills):
    """Fill in a process that is killed at random moments; returns how many entries each left."""
    folder, left = tmp_path / "cache", []
    arguments = [sys.executable, "-W", "ignore", "-m", "d2kd.cache", "--config-file", str(config)]
    chance = random.Random(3)
    for _ in range(kills):
        child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(_contents(folder)) if folder.exists() else 0
        # From the first new entry on, within the time that the next ones take.
        until = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < until:
            if folder.exists() and len(list(folder.rglob("*.safetensors*"))) > before:
                break
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        left.append(len(_contents(folder)))
        if left[-1] == ENTRIES:  # begin anew with a few
            for path in sorted(folder.rglob("*.safetensors"))[2:]:
                path.unlink()
    return left


def _check_killed(config, tmp_path, kills):
    left = _kill_over_and_over(config, tmp_path, kills)
    print(left)
    assert any(0 < n < ENTRIES for n in left)
    fill_cache(str(config), [])
    clean = ["DISTILL.TEACHER.CACHE", str(tmp_path / "clean")]
    fill_cache(str(config), clean)
    assert _contents(tmp_path / "cache") == _contents(tmp_path / "clean")


def test_two_kills_leave_right_values(config, tmp_path):
    _check_killed(config, tmp_path, kills=2)


@pytest.mark.slow
def test_twenty_kills_leave_right_values(config, tmp_path):
    _check_killed(config, tmp_path, kills=20)


def test_half_an_entry_is_never_read(config, tmp_path, monkeypatch):
    """The process dies between writing a file and renaming it."""
    store = FolderStore(str(tmp_path / "cache"), {"a": "b"}, 2**20)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("d2kd.data.map_cache.entry_file.os.replace", die)
        with pytest.raises(KeyboardInterrupt):
            store.put("features", "aa11", {"p2": torch.zeros(1, 2, 2)})
    assert store.get("features", "aa11") is None and store.rejected == 0


@pytest.mark.parametrize(
    "opts",
    [
        ["DISTILL.TEACHER.CACHE", "memory"],
        ["DISTILL.TEACHER.CACHE", ""],
        ["DISTILL.ENABLED", "False"],
    ],
)
def test_only_a_folder_can_be_filled(config, opts):
    with pytest.raises(ConfigError, match="as './cache'"):
        read_config(str(config), opts)


def test_what_does_not_fit_ends_with_its_message(config, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--config-file", str(config), "DISTILL.TEACHER.CACHE_GIB", "0.0001"])
    assert end.value.code == 2 and f"needs {IMAGES} images x 4 variants" in capsys.readouterr().err
