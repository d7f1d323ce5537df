# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The command line: what it prints, what it refuses, and how it fails."""

import logging

import onnx
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from d2kd.checkpoint import write_student_config
from d2kd.config.student import student_config
from d2kd.export import command, packages, run
from d2kd.export.graph.build import check_exportable
from d2kd.export.images import read_images
from d2kd.export.sources import load_configs, load_student, load_teacher
from d2kd.utils.errors import ConfigError, WeightsError
from tests.common.exportable import exportable, exportable_cfg
from tests.common.helpers import distill_cfg, spread, write_coco_set

QUICK = ["--images", "2", "--eval-images", "2", "--rounds", "2"]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, teacher_files):
    """What a distilled run leaves: student.yaml, config.yaml and the checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "data").mkdir()
    cfg = distill_cfg(teacher_files, "OUTPUT_DIR", str(folder))
    cfg.DATASETS.CUSTOM = CfgNode({"own": CfgNode(write_coco_set(folder / "data"))})
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("own",)
    (folder / "config.yaml").write_text(cfg.dump())
    write_student_config(cfg)
    torch.manual_seed(0)
    model = spread(build_model(student_config(cfg)))
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return folder


@pytest.fixture
def main(run_folder, clean_catalogs):
    """The command on this run; its words come after."""
    root = logging.getLogger()
    before = root.handlers[:]
    yield lambda *words: command.main(["--config-file", str(run_folder / "student.yaml"), *words])
    root.handlers[:] = before


def test_the_command_writes_compares_evaluates_and_times(main, tmp_path, capsys):
    main("--output", str(tmp_path / "new" / "a.onnx"), *QUICK)
    printed = capsys.readouterr().out
    for part in ("compared with PyTorch on 2 images", "0 without their like", "AP on up to 2"):
        assert part in printed
    rows = [line.split()[0] for line in printed.splitlines() if " median " in line]
    assert rows == ["teacher", "student", "exported"]
    content = onnx.load(tmp_path / "new" / "a.onnx")
    found = {x.key: x.value for x in content.metadata_props}
    assert found["classes"] == '["class 0", "class 1", "class 2", "class 3"]'
    assert (found["channels"], found["min_size"], found["precision"]) == ("BGR", "64", "float32")


def test_int8_is_calibrated_on_training_images(main, tmp_path, capsys, monkeypatch):
    seen = []
    quantize = run.quantize
    monkeypatch.setattr(
        run,
        "quantize",
        lambda s, t, images, shape: (seen.extend(images), quantize(s, t, images, shape)),
    )
    more = [
        "--calibration-images",
        "3",
        "--max-score-difference",
        "1",
        "--max-box-difference",
        "99",
    ]
    main(
        "--output",
        str(tmp_path / "a.onnx"),
        "--precision",
        "int8",
        *more,
        "--images",
        "1",
        "--eval-images",
        "0",
        "--rounds",
        "2",
        "--no-teacher",
    )
    assert [tuple(x.shape) for x in seen] == [(3, 64, 64)] * 3
    assert "int8" in capsys.readouterr().out and list(tmp_path.iterdir()) == [tmp_path / "a.onnx"]
    operators = {x.op_type for x in onnx.load(tmp_path / "a.onnx").graph.node}
    assert "DequantizeLinear" in operators


def test_a_file_that_disagrees_ends_with_status_2(main, tmp_path, capsys, monkeypatch):
    """A graph that forgets to cut boxes at the image."""
    monkeypatch.setattr("d2kd.export.graph.rcnn.clip", lambda boxes, sizes: boxes)
    with pytest.raises(SystemExit) as end:
        main("--output", str(tmp_path / "a.onnx"), *QUICK)
    printed = capsys.readouterr()
    assert end.value.code == 2 and "a.onnx does not agree with PyTorch" in printed.err
    assert "median" not in printed.out


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "set --output"),
        (["--output", "a.onnx", "--rounds", "0"], "--rounds and --threads above 0"),
        (["--output", "a.onnx", "--size", "16", "64"], "both numbers of --size"),
        (["--output", "a.ts", "--precision", "int8"], "int8 is for .onnx alone"),
        (["--output", "a.onnx", "--weights", "absent.pth"], "absent.pth is not there"),
        (["--output", "a.onnx", "MODEL.KEYPOINT_ON", "True"], "KEYPOINT"),
    ],
)
def test_wrong_options_are_refused(main, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(*words)
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(main, tmp_path, capsys, monkeypatch):
    def absent(name, *args):
        if name.startswith("onnx"):
            raise ImportError(f"No module named {name!r}")
        return load(name, *args)

    load = packages.importlib.import_module
    monkeypatch.setattr(packages.importlib, "import_module", absent)
    with pytest.raises(SystemExit):
        main("--output", str(tmp_path / "a.onnx"))
    printed = capsys.readouterr().err
    assert "needs the package onnx" in printed and "pip install 'd2kd[export]'" in printed


@pytest.mark.parametrize(
    "name, opts, message",
    [
        ("Faster R-CNN", ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"], "'CascadeROIHeads' cannot"),
        ("Faster R-CNN", ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"], "POOLER_TYPE 'ROIPool'"),
        ("FCOS", ["TEST.DETECTIONS_PER_IMAGE", -1], "DETECTIONS_PER_IMAGE is -1"),
        ("GFL", ["MODEL.GFL.SCORE_THRESH_TEST", -0.5], "GFL.SCORE_THRESH_TEST is -0.5"),
        ("FCOS", ["MODEL.META_ARCHITECTURE", "PanopticFPN"], "'PanopticFPN' cannot be exported"),
    ],
)
def test_detectors_that_a_graph_would_get_wrong_are_refused(name, opts, message):
    cfg = exportable_cfg(name, *opts)
    cascade = "CascadeROIHeads" in opts
    if cascade:
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    model = build_model(student_config(cfg)) if cascade else exportable(name)
    with pytest.raises(ConfigError, match=message):
        check_exportable(cfg, model)


def test_every_detector_of_the_tests_can_be_exported():
    for name in ("Faster R-CNN", "Mask R-CNN", "RetinaNet", "FCOS", "GFL"):
        check_exportable(exportable_cfg(name), exportable(name))


def test_the_run_beside_student_yaml_has_data_and_teacher(run_folder, tmp_path):
    cfg, trained = load_configs(str(run_folder / "student.yaml"), [])
    assert not cfg.DISTILL.ENABLED and trained.DISTILL.ENABLED
    assert cfg.DATASETS.CUSTOM.own.FORMAT == "coco" and cfg.MODEL.DEVICE == "cpu"
    assert load_teacher(trained)[0] is not None
    assert load_teacher(cfg) == (None, "the run was not distilled")
    trained.DISTILL.TEACHER.WEIGHTS = "absent.pth"
    teacher, why = load_teacher(trained)
    assert teacher is None and "absent.pth" in why
    (tmp_path / "student.yaml").write_text((run_folder / "student.yaml").read_text())
    alone, _ = load_configs(str(tmp_path / "student.yaml"), [])
    with pytest.raises(ConfigError, match="config.yaml beside --config-file"):
        read_images(alone, ("TEST", "TRAIN"), 1, "compare the file on")


def test_incomplete_weights_are_refused(run_folder, tmp_path):
    cfg, _ = load_configs(str(run_folder / "student.yaml"), [])
    state = torch.load(run_folder / "model_final.pth")["model"]
    state.pop("roi_heads.box_predictor.cls_score.weight")
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="the student is incomplete"):
        load_student(cfg, str(tmp_path / "a.pth"))
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ConfigError, match="set --weights"):
        load_student(cfg)
