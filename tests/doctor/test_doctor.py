# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The doctor on a sound set-up, and on ones that are broken in one place each."""

import pytest
import torch
from PIL import Image

from d2kd.doctor import Finding, Status, render, run
from d2kd.modeling import Distiller
from tests.common.examine import examine
from tests.common.helpers import K, write_teacher


def _problems(found):
    return {k: x for k, x in found.items() if x.status is not Status.OK}


def test_a_sound_setup(setup):
    found = examine(setup[0])
    # The only complaints are about few boxes and few iterations.
    # The teacher of the tests is a random one.
    expected = {"data", "ratio reg", "gradient reg", "gradients", "ratio feature"}
    expected.add("teacher's boxes")
    assert set(_problems(found)) <= expected
    assert not [x for x in found.values() if x.status is Status.ERROR]
    names = "config device output data boxes classes duplicates images teacher pair start inherit"
    assert {*names.split(), "adapters"} < set(found)
    assert {"finite", "gradients", "teacher still", "ratio cls", "memory", "time"} < set(found)
    assert "4 images, 8 boxes" in found["data"].text
    assert "1x1 (16 -> 24 channels)" in found["adapters"].text
    assert "s per iteration" in found["time"].text and " min for 3 iterations" in found["time"].text


def test_nothing_is_written_and_the_student_is_as_it_was(setup, tmp_path):
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    examine(setup[0])
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_gpu_that_is_not_here_is_warned_of(setup, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = examine(setup[0], "MODEL.DEVICE", "cuda")
    device = found["device"]
    assert device.status is Status.WARNING and "this runs on the CPU" in device.text
    assert "MODEL.DEVICE to cpu" in device.advice and {"finite", "time"} < set(found)
    assert examine(setup[0])["device"] == Finding(Status.OK, "device", "MODEL.DEVICE is cpu")


def test_without_a_teacher(setup):
    found = examine(setup[0], "DISTILL.ENABLED", "False")
    assert not [x for x in found.values() if x.status is Status.ERROR]
    assert "none" in found["teacher"].text and "ratio cls" not in found
    assert {"finite", "gradients", "time"} < set(found)


def test_the_suggested_weight_brings_the_ratio_to_its_target(setup):
    found = examine(setup[0], "DISTILL.CLS.WEIGHT", "3.0")
    advice = found["ratio cls"].advice
    assert "DISTILL.CLS.WEIGHT " in advice and "(now 3)" in advice
    weight = advice.split("WEIGHT ")[1].split(" ")[0]
    again = examine(setup[0], "DISTILL.CLS.WEIGHT", f"{float(weight)}")
    ratio = float(again["ratio cls"].text.split(" is ")[1].split(" x")[0])
    assert ratio == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    "opts, check, status, words",
    [
        (["DISTIL.CLS.WEIGHT", "1.0"], "config", "error", "Did you mean 'DISTILL.CLS.WEIGHT'?"),
        (["DISTILL.CLS.WEIGHT", "-1.0"], "config", "error", "a number, 0 or above"),
        (["DISTILL.REG.GATE", "teacher"], "config", "error", "DISTILL.REG.GATE is 'teacher'"),
        (["DISTILL.SCHEDULE.NAME", "non"], "config", "error", "DISTILL.SCHEDULE.NAME is 'non'"),
        (["DISTILL.DISTANCES.SSIM.WINDOW", "8"], "config", "error", "an odd whole number"),
        (["SOLVER.OPTIMIZER", "ADAM"], "config", "error", "Did you mean 'ADAMW'?"),
        (["DATASETS.TRAIN", "('minne',)"], "data", "error", "Did you mean 'mine'?"),
        (["DISTILL.TEACHER.WEIGHTS", "absent.pth"], "teacher", "error", "absent.pth is not there"),
        (["DISTILL.TEACHER.CONFIG_FILE", "absent.yaml"], "teacher", "error", "neither a file"),
        (
            ["MODEL.BACKBONE.NAME", "nothing"],
            "student",
            "error",
            "MODEL.BACKBONE.NAME is 'nothing'",
        ),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "7"], "data", "error", "NUM_CLASSES to 4"),
        (["DISTILL.FEATURE.LEVELS", "['p9']"], "pair", "error", "no feature level 'p9'"),
        (["DISTILL.STUDENT.INHERIT", "['nothing']"], "inherit", "error", "take it out"),
        (["MODEL.WEIGHTS", "absent.pth"], "start", "error", "MODEL.WEIGHTS absent.pth"),
        (["OUTPUT_DIR", "/proc/d2kd/x"], "output", "error", "cannot be written"),
        (["SOLVER.MAX_ITER", "601"], "data", "warning", "Set SOLVER.MAX_ITER and SOLVER.STEPS"),
        (["SOLVER.MAX_ITER", "600"], "data", "ok", "300.0 epochs"),
        (["SOLVER.WARMUP_ITERS", "600"], "warm-up", "warning", "lower SOLVER.WARMUP_ITERS"),
        (["SOLVER.LR_SCHEDULER_NAME", "Cosine"], "config", "error", "WarmupCosineLR"),
        (["INPUT.FORMAT", "RGB"], "student's pixels", "warning", "PIXEL_MEAN is BGR's"),
        (["MODEL.PIXEL_STD", "[0.2,0.2,0.2]"], "student's pixels", "warning", "made for 0..1"),
        (["DISTILL.CLS.WEIGHT", "0.0"], "ratio cls", "warning", "DISTILL.CLS.WEIGHT 0"),
        (["DISTILL.CLS.WEIGHT", "900.0"], "ratio cls", "warning", "would make it 0.5"),
        (["DISTILL.FEATURE.WEIGHT", "0.0"], "gradients", "warning", "is the weight of a loss 0"),
        (["DISTILL.CLS.WEIGHT", "3.4e38"], "finite", "error", "loss_distill_cls"),
    ],
)
def test_broken_in_one_place(setup, opts, check, status, words):
    finding = examine(setup[0], *opts)[check]
    assert finding.status.value == status, finding
    assert words in finding.text + finding.advice, finding


def test_channel_orders_are_said(setup):
    text = examine(setup[0], "INPUT.FORMAT", "RGB")["channel order"].text
    assert text == "RGB images are converted to BGR for the teacher"


def test_inherited_modules_are_listed(setup):
    found = examine(setup[0], "DISTILL.STUDENT.INHERIT", "['roi_heads.box_predictor.cls_score']")
    assert "cls_score (2 tensors) start from the teacher's" in found["inherit"].text


def test_an_incomplete_teacher(setup, teacher_files, tmp_path):
    state = torch.load(teacher_files[1])["model"]
    state.pop("roi_heads.box_predictor.cls_score.bias")
    torch.save({"model": state}, tmp_path / "part.pth")
    found = examine(setup[0], "DISTILL.TEACHER.WEIGHTS", str(tmp_path / "part.pth"))
    assert found["teacher"].status is Status.ERROR and "1 missing" in found["teacher"].text
    assert "time" not in found


def test_a_teacher_of_other_classes_is_a_matter_of_the_pair(setup, tmp_path):
    other = write_teacher(tmp_path / "other", "MODEL.ROI_HEADS.NUM_CLASSES", K + 3)
    names = ["DISTILL.TEACHER.CONFIG_FILE", "DISTILL.TEACHER.WEIGHTS"]
    found = examine(setup[0], names[0], str(other[0]), names[1], str(other[1]))
    assert found["pair"].status is Status.ERROR and "NUM_CLASSES" in found["pair"].text


def test_images_that_are_broken(setup):
    config, folder = setup
    for path in folder.glob("*.png"):
        # Of a JPEG the header alone is read before training.
        Image.open(path).save(path, format="JPEG")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    found = examine(config)
    assert (
        found["images"].status is Status.ERROR and "4 of 4 cannot be read" in found["images"].text
    )
    assert not {"time", "steps"} & set(found)


def test_trained_on_the_test_set(setup):
    found = examine(setup[0], "DATASETS.TEST", "('mine',)")
    assert "4 images of DATASETS.TEST are trained on" in found["duplicates"].text


def test_a_step_that_fails_and_a_teacher_that_moves(setup, monkeypatch):

    def move(model, batch):
        model.teacher.model.roi_heads.box_predictor.cls_score.bias.data.add_(1)
        return forward(model, batch)

    forward = Distiller.forward
    monkeypatch.setattr(Distiller, "forward", move)
    found = examine(setup[0])
    assert found["teacher still"].status is Status.ERROR
    assert "cls_score.bias" in found["teacher still"].text

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run, "run_steps", fail)
    assert "RuntimeError: out of memory" in examine(setup[0])["steps"].text


def test_lines_are_wrapped_and_hang():
    long = " ".join(["word"] * 60)
    lines = render(Finding(Status.WARNING, "check", f"{long}\nsecond", "do this")).splitlines()
    assert all(len(line) <= 110 for line in lines) and lines[0].startswith("warning check  ")
    assert {line[:26] for line in lines[1:]} == {" " * 26}
    assert lines[-2:] == [" " * 26 + "second", " " * 26 + "-> do this"]
