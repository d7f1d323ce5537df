"""The doctor on a sound set-up, and on ones that are broken in one place each."""

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from helpers import K, distill_cfg, plain_cfg, write_coco_set, write_teacher
from PIL import Image

from d2kd.doctor import Finding, Status, data, diagnose, render, run
from d2kd.doctor.steps import Trial, run_steps
from d2kd.doctor.training import check_time
from d2kd.modeling import Distiller

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean_catalogs():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def setup(tmp_path, teacher_files):
    """(yaml of a student with data and a teacher, folder of the data)."""
    folder = tmp_path / "data"
    folder.mkdir()
    return _write(tmp_path, distill_cfg(teacher_files), folder), folder


def _write(tmp_path, cfg, folder, name="mine"):
    content = yaml.safe_load(cfg.dump())
    declared = write_coco_set(folder)
    content["DATASETS"].update(CUSTOM={name: dict(declared)}, TRAIN=[name], TEST=[])
    content["OUTPUT_DIR"] = str(tmp_path / "output")
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "student.yaml")


def _examine(config, *opts):
    """check -> finding; a step is tried on one batch."""
    return {x.check: x for x in diagnose(config, opts, batches=1)}


def _problems(found):
    return {k: x for k, x in found.items() if x.status is not Status.OK}


def test_a_sound_setup(setup):
    found = _examine(setup[0])
    # Few boxes and few iterations: that is all there is to say against it.
    assert set(_problems(found)) <= {"data", "ratio reg", "gradients", "ratio feature"}
    assert not [x for x in found.values() if x.status is Status.ERROR]
    names = "config device output data boxes classes duplicates images teacher pair start inherit adapters"
    assert set(names.split()) < set(found)
    assert {"finite", "gradients", "teacher still", "ratio cls", "memory", "time"} < set(found)
    assert "4 images, 8 boxes" in found["data"].text
    assert "1x1 (16 -> 24 channels)" in found["adapters"].text
    assert "s an iteration" in found["time"].text and " min for 3 iterations" in found["time"].text


def test_nothing_is_written_and_the_student_is_as_it_was(setup, tmp_path):
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    _examine(setup[0])
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_gpu_that_is_not_here_is_warned_of(setup, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = _examine(setup[0], "MODEL.DEVICE", "cuda")
    device = found["device"]
    assert device.status is Status.WARNING and "the checks run on the CPU" in device.text
    assert "MODEL.DEVICE cpu" in device.advice and {"finite", "time"} < set(found)
    assert _examine(setup[0])["device"] == Finding(Status.OK, "device", "MODEL.DEVICE is cpu")


def test_without_a_teacher(setup):
    found = _examine(setup[0], "DISTILL.ENABLED", "False")
    assert not [x for x in found.values() if x.status is Status.ERROR]
    assert "none" in found["teacher"].text and "ratio cls" not in found
    assert {"finite", "gradients", "time"} < set(found)


def test_the_suggested_weight_brings_the_ratio_to_its_target(setup):
    found = _examine(setup[0], "DISTILL.CLS.WEIGHT", "3.0")
    advice = found["ratio cls"].advice
    assert "DISTILL.CLS.WEIGHT " in advice and "(now 3)" in advice
    weight = advice.split("WEIGHT ")[1].split(" ")[0]
    again = _examine(setup[0], "DISTILL.CLS.WEIGHT", f"{float(weight)}")
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
        (["MODEL.ROI_HEADS.NUM_CLASSES", "7"], "data", "error", "NUM_CLASSES to 4"),
        (["DISTILL.FEATURE.LEVELS", "['p9']"], "pair", "error", "no feature level 'p9'"),
        (["DISTILL.STUDENT.INHERIT", "['nothing']"], "inherit", "error", "take it out"),
        (["MODEL.WEIGHTS", "absent.pth"], "start", "error", "MODEL.WEIGHTS absent.pth"),
        (["OUTPUT_DIR", "/proc/d2kd/x"], "output", "error", "cannot be written"),
        (["SOLVER.MAX_ITER", "601"], "data", "warning", "Set SOLVER.MAX_ITER and SOLVER.STEPS"),
        (["SOLVER.MAX_ITER", "600"], "data", "ok", "300.0 epochs"),
        (["INPUT.FORMAT", "RGB"], "student's pixels", "warning", "PIXEL_MEAN is BGR's"),
        (["MODEL.PIXEL_STD", "[0.2,0.2,0.2]"], "student's pixels", "warning", "0..1's"),
        (["DISTILL.CLS.WEIGHT", "0.0"], "ratio cls", "warning", "DISTILL.CLS.WEIGHT 0"),
        (["DISTILL.CLS.WEIGHT", "900.0"], "ratio cls", "warning", "would make it 0.5"),
        (["DISTILL.FEATURE.WEIGHT", "0.0"], "gradients", "warning", "is a weight of the losses 0"),
        (["DISTILL.CLS.WEIGHT", "3.4e38"], "finite", "error", "loss_distill_cls"),
    ],
)
def test_broken_in_one_place(setup, opts, check, status, words):
    finding = _examine(setup[0], *opts)[check]
    assert finding.status.value == status, finding
    assert words in finding.text + finding.advice, finding


def test_channel_orders_are_said(setup):
    text = _examine(setup[0], "INPUT.FORMAT", "RGB")["channel order"].text
    assert text == "RGB images are turned to BGR for the teacher"


def test_inherited_modules_are_listed(setup):
    found = _examine(setup[0], "DISTILL.STUDENT.INHERIT", "['roi_heads.box_predictor.cls_score']")
    assert "cls_score (2 tensors) start from the teacher's" in found["inherit"].text


def _save_student(path, teacher_files, *opts):
    """A checkpoint of a student with some options, its classifier scaled to be told apart."""
    state = build_model(distill_cfg(teacher_files, *opts)).state_dict()
    state["roi_heads.box_predictor.cls_score.weight"] *= 100
    torch.save({"model": state}, path)
    return ["MODEL.WEIGHTS", str(path)]


def test_the_steps_are_of_the_weights_that_training_starts_from(setup, teacher_files, tmp_path):
    opts = _save_student(tmp_path / "start.pth", teacher_files)
    random, *started = (_examine(setup[0], *x) for x in ([], opts, [*opts, "SEED", "2"]))
    assert started[0]["start"].text.endswith("start.pth: 293 of 293 tensors")
    losses = [_mean_of("loss_cls", found) for found in (random, *started)]
    # A hundredfold classifier is far from indifferent, whatever the seed.
    assert min(losses[1:]) > 1.5 * losses[0], losses


def _mean_of(loss, found):
    return float(found["finite"].text.split(f" {loss} ")[1].split(",")[0])


def test_a_start_that_matches_in_part(setup, teacher_files, tmp_path):
    opts = _save_student(tmp_path / "start.pth", teacher_files, "MODEL.ROI_HEADS.NUM_CLASSES", 9)
    state = torch.load(opts[1])["model"]
    state = {k: v for k, v in state.items() if not k.startswith(("proposal", "backbone.fpn"))}
    torch.save({"model": state}, opts[1])
    start = _examine(setup[0], *opts)["start"]
    assert start.status is Status.OK and "267 of 293 tensors" in start.text
    assert "random: 16 of 281 of backbone, 6 of 6 of proposal_generator, 4 of" in start.text
    assert (
        "another shape have roi_heads.box_predictor.cls_score.weight: file (10, 16)" in start.text
    )


def test_a_start_that_matches_nothing(setup, tmp_path):
    torch.save({"model": {"layer1.conv1.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    found = _examine(setup[0], "MODEL.WEIGHTS", str(tmp_path / "other.pth"))
    assert found["start"].status is Status.ERROR and "time" not in found
    assert "0 of 293 tensors; the file has layer1.conv1.weight, the student" in found["start"].text


def test_a_start_that_cannot_be_fetched_is_said_where_it_matters(setup):
    # Port 9 of this machine: nobody listens, and nothing leaves it.
    found = _examine(setup[0], "MODEL.WEIGHTS", "http://127.0.0.1:9/start.pth")
    assert found["start"].status is Status.WARNING and "cannot be fetched" in found["start"].text
    assert found["ratio cls"].status is Status.WARNING
    advice = found["ratio cls"].advice
    assert "random weights, not MODEL.WEIGHTS" in advice and "would make it" not in advice


def test_an_incomplete_teacher(setup, teacher_files, tmp_path):
    state = torch.load(teacher_files[1])["model"]
    state.pop("roi_heads.box_predictor.cls_score.bias")
    torch.save({"model": state}, tmp_path / "part.pth")
    found = _examine(setup[0], "DISTILL.TEACHER.WEIGHTS", str(tmp_path / "part.pth"))
    assert found["teacher"].status is Status.ERROR and "1 missing" in found["teacher"].text
    assert "time" not in found


def test_a_teacher_of_other_classes_is_a_matter_of_the_pair(setup, tmp_path):
    other = write_teacher(tmp_path / "other", "MODEL.ROI_HEADS.NUM_CLASSES", K + 3)
    names = ["DISTILL.TEACHER.CONFIG_FILE", "DISTILL.TEACHER.WEIGHTS"]
    found = _examine(setup[0], names[0], str(other[0]), names[1], str(other[1]))
    assert found["pair"].status is Status.ERROR and "NUM_CLASSES" in found["pair"].text


def test_images_that_are_broken(setup):
    config, folder = setup
    for path in folder.glob("*.png"):
        # Of a JPEG the header alone is read before training.
        Image.open(path).save(path, format="JPEG")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    found = _examine(config)
    assert (
        found["images"].status is Status.ERROR and "4 of 4 cannot be read" in found["images"].text
    )
    assert not {"time", "steps"} & set(found)


def _records(**changes):
    """Two records of 64 x 64 pixels with a box each; changes go to the first."""
    item = {"bbox": [4, 4, 20, 30], "bbox_mode": 0, "category_id": 0, "iscrowd": 0}
    first = {"file_name": "a.png", "width": 64, "height": 64, "annotations": [item]}
    return [{**first, **changes}, {**first, "file_name": "b.png"}]


@pytest.mark.parametrize(
    "changes, check, words",
    [
        ({"annotations": [{"bbox": [4, 4, 99, 30], "bbox_mode": 0, "category_id": 0}]}, "boxes",
         "1 images have boxes outside or without extent: a.png"),
        ({"annotations": [{"bbox": [4, 4, 4, 30], "bbox_mode": 0, "category_id": 0}]}, "boxes",
         "1 images have boxes outside or without extent: a.png"),
        ({"file_name": "b.png"}, "duplicates", "1 images occur more than once: b.png"),
        ({}, "classes", "1 of 2 classes have no box: bee"),
    ],
)  # fmt: skip
def test_registered_data_is_examined(changes, check, words, monkeypatch):
    DatasetCatalog.register("doctor_set", lambda: _records(**changes))
    MetadataCatalog.get("doctor_set").thing_classes = ["ant", "bee"]
    monkeypatch.setattr(data, "why_unreadable", lambda record, image_format: None)
    cfg = plain_cfg("DATASETS.TRAIN", ("doctor_set",), "MODEL.ROI_HEADS.NUM_CLASSES", 2)
    found = {x.check: x for x in data.check_data(cfg)}
    assert found[check].status is Status.WARNING and words in found[check].text, found[check]


def test_trained_on_the_test_set(setup):
    found = _examine(setup[0], "DATASETS.TEST", "('mine',)")
    assert "4 images of DATASETS.TEST are trained on" in found["duplicates"].text


def test_a_step_that_fails_and_a_teacher_that_moves(setup, monkeypatch):

    def move(model, batch):
        model.teacher.model.roi_heads.box_predictor.cls_score.bias.data.add_(1)
        return forward(model, batch)

    forward = Distiller.forward
    monkeypatch.setattr(Distiller, "forward", move)
    found = _examine(setup[0])
    assert found["teacher still"].status is Status.ERROR
    assert "cls_score.bias" in found["teacher still"].text

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run, "run_steps", fail)
    assert "RuntimeError: out of memory" in _examine(setup[0])["steps"].text


def test_command_line_and_its_status(setup, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("doctor_tool", ROOT / "tools" / "doctor.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for opts, code in (([], 0), (["DISTILL.TEACHER.WEIGHTS", "absent.pth"], 1)):
        command = ["doctor.py", "--config-file", setup[0], "--batches", "1", *opts]
        monkeypatch.setattr("sys.argv", command)
        assert tool.main() == code
        printed = capsys.readouterr().out
        assert ("error   teacher" in printed) == bool(code)
        assert f"{code} error" in printed.splitlines()[-1]


@pytest.mark.parametrize("weight, steps", [(1.0, 3), (3.4e38, 1)])
def test_steps_move_no_weight_and_end_at_a_bad_loss(train_set, teacher_files, weight, steps):
    cfg = distill_cfg(teacher_files, "DISTILL.CLS.WEIGHT", weight, "SOLVER.WEIGHT_DECAY", 0.1)
    model = Distiller(cfg).train()
    before = [p.clone() for p in model.parameters()]
    trial = run_steps(cfg, model, 2, 1)
    assert all(map(torch.equal, before, model.parameters()))
    assert len(trial.losses) == steps and trial.finite == (weight == 1)
    assert (len(trial.seconds), trial.shrink) == (steps - 1, 2)


def test_time_for_the_schedule():
    trial = Trial(seconds=[2.0, 2.0, 9.0], plain_seconds=[1.0], loading=[5.0], shrink=2.0)
    cfg = plain_cfg("SOLVER.MAX_ITER", 1800, "DATALOADER.NUM_WORKERS", 1)
    finding = check_time(cfg, trial)
    assert "4.00 s an iteration, 2.00 s without distillation: 2.0 h and 1.0 h" in finding.text
    assert "scaled up from 1/2 of a batch" in finding.text
    assert finding.status is Status.WARNING and "NUM_WORKERS from 1 to 2" in finding.advice
    cfg.DATALOADER.NUM_WORKERS = 2
    assert check_time(cfg, trial).status is Status.OK


def test_lines_are_wrapped_and_hang():
    long = " ".join(["word"] * 60)
    lines = render(Finding(Status.WARNING, "check", f"{long}\nsecond", "do this")).splitlines()
    assert all(len(line) <= 110 for line in lines) and lines[0].startswith("warning check  ")
    assert {line[:26] for line in lines[1:]} == {" " * 26}
    assert lines[-2:] == [" " * 26 + "second", " " * 26 + "-> do this"]
