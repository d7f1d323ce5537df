# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The command: a picture of each image, at the start and at a checkpoint, and clear refusals."""

import subprocess
import sys

import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from d2kd.modeling import Distiller
from d2kd.utils.errors import ConfigError, DatasetError, WeightsError
from d2kd.visualize import command
from d2kd.visualize.run import read_config, view_images, visualize
from d2kd.visualize.samples import draw_samples
from tests.common import ROOT
from tests.common.helpers import distill_cfg, plain_cfg
from tests.common.written_config import write_config


@pytest.fixture
def config(tmp_path, teacher_files, clean_catalogs):
    """The yaml of a student with data of its own: four images in data/."""
    (tmp_path / "data").mkdir()
    return write_config(tmp_path, distill_cfg(teacher_files), tmp_path / "data")


def checkpoint(config, path, *, adapters=True):
    """Write what a run of this config saves, with weights of its own."""
    torch.manual_seed(11)
    model = Distiller(read_config(config))
    content = {"model": model.student.state_dict(), "iteration": 7}
    if adapters:
        content["distill_losses"] = model.distill_losses.state_dict()
    torch.save(content, path)
    return str(path), content


def test_a_png_is_written_for_each_image(config, tmp_path, capsys):
    command.main(["--config-file", config, "--output", str(tmp_path / "a" / "b"), "--images", "2"])
    paths = sorted((tmp_path / "a" / "b").iterdir())
    assert capsys.readouterr().out.split() == [str(x) for x in paths] and len(paths) == 2
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.size[0] == 1300 and image.size[1] > 1500


def test_the_seed_chooses_the_images(config):
    cfg = read_config(config)
    names = [[x.title for x in view_images(cfg, 3, seed, None)] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    assert all(len(set(x)) == 3 for x in names)


def test_more_images_than_there_are_give_all(config, caplog):
    assert len(list(view_images(read_config(config), 9, 0, None))) == 4
    assert "only 4 images" in caplog.text


def test_the_start_is_what_training_starts_from(config):
    cfg = read_config(config)
    (view,) = view_images(cfg, 1, 5, None)
    again = list(view_images(cfg, 4, 5, None))[0]
    (student,) = view.students
    assert student.name == "at its start" and view.title == again.title
    for level, energy in student.features.teacher.items():
        torch.testing.assert_close(energy, again.students[0].features.teacher[level])


def test_a_checkpoint_stands_beside_the_start(config, tmp_path):
    path, content = checkpoint(config, tmp_path / "model_0000006.pth")
    cfg = read_config(config)
    (view,) = view_images(cfg, 1, 0, path)
    before, after = view.students
    assert after.name == "at model_0000006.pth"
    name = "p2"
    assert torch.equal(before.features.teacher[name], after.features.teacher[name])
    assert not torch.allclose(before.features.student[name], after.features.student[name])
    # Without its adapters the features would have another energy.
    for key in content["distill_losses"]:
        content["distill_losses"][key] *= 2
    torch.save(content, path)
    (twice,) = view_images(cfg, 1, 0, path)
    expected = 4 * after.features.student[name]
    torch.testing.assert_close(twice.students[1].features.student[name], expected)


def test_a_checkpoint_without_adapters_is_warned_of(config, tmp_path, caplog):
    path, _ = checkpoint(config, tmp_path / "a.pth", adapters=False)
    list(view_images(read_config(config), 1, 0, path))
    assert "has no adapters" in caplog.text


def test_a_config_that_distils_nothing_is_refused(config, tmp_path):
    with pytest.raises(ConfigError, match="DISTILL.ENABLED False.*set DISTILL.ENABLED to True"):
        visualize(config, ["DISTILL.ENABLED", "False"], tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_an_output_that_is_a_file_is_refused(config, tmp_path):
    (tmp_path / "p").write_text("")
    with pytest.raises(ConfigError, match="--output .*cannot be a folder"):
        visualize(config, [], tmp_path / "p")


def test_a_set_without_boxes_is_refused(clean_catalogs):
    DatasetCatalog.register("empty", lambda: [{"file_name": "a.png", "annotations": []}] * 2)
    opts = ["DATASETS.TRAIN", ["empty"], "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]
    with pytest.raises(DatasetError, match="empty.*no image with a box"):
        draw_samples(plain_cfg(*opts), 2, 0)


def test_weights_of_another_detector_are_refused(config, tmp_path):
    torch.save({"model": {"a.weight": torch.zeros(2)}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="--weights .*of the student's tensors"):
        visualize(config, [], tmp_path / "p", weights=str(tmp_path / "a.pth"))


def test_the_teacher_cache_is_left_alone(config, tmp_path):
    cfg = read_config(config, ["DISTILL.TEACHER.CACHE", str(tmp_path / "cache")])
    assert cfg.DISTILL.TEACHER.CACHE == ""


@pytest.mark.parametrize("wrong", [["--images", "0"], ["--seed", "-1"]])
def test_options_out_of_range_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--config-file", "a.yaml", *wrong])
    assert end.value.code == 2 and "--images to 1 or more" in capsys.readouterr().err


def test_a_mistake_ends_the_tool_with_its_message(tmp_path):
    command = [sys.executable, "-W", "ignore", "tools/visualize.py", "--config-file", "no.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "no.yaml" in done.stderr
    assert "Traceback" not in done.stderr
