# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Student and teacher are compared class by class only where the classes mean the same."""

import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from d2kd.data import class_names, register_custom_datasets
from d2kd.data.class_names import same_class_names
from d2kd.engine import DistillTrainer
from d2kd.modeling import Distiller
from d2kd.modeling.class_names import compares_classes
from d2kd.utils.errors import PairMismatchError, ResumeError
from tests.common.helpers import K, distill_cfg, plain_cfg, write_coco_set, write_teacher

NAMES = [f"class {i}" for i in range(K)]
OTHER = [NAMES[1], NAMES[0], *NAMES[2:]]


pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def files(tmp_path):
    return write_teacher(tmp_path / "teacher")


def _student(tmp_path, files, *opts, **declared):
    """The config of a student whose set is declared and registered."""
    (tmp_path / "data").mkdir(exist_ok=True)
    cfg = distill_cfg(files, "OUTPUT_DIR", str(tmp_path / "out"), *opts)
    cfg.DATASETS.CUSTOM = CfgNode({"tiny": {**write_coco_set(tmp_path / "data"), **declared}})
    cfg.DATASETS.TRAIN = ("tiny",)
    register_custom_datasets(cfg)
    return cfg


def _record(files, names):
    content = torch.load(files[1])
    torch.save({**content, "classes": {"names": names}}, files[1])


def _declare(files, names):
    """Let the teacher's config declare a set of these classes, in a file that is not here."""
    sets = {"theirs": {"FORMAT": "coco", "ANNOTATIONS": "a.json", "IMAGES": "b", "CLASSES": names}}
    text = files[0].read_text().replace("CUSTOM: {}", f"CUSTOM: {json.dumps(sets)}")
    files[0].write_text(text.replace("- tiny_train", "- theirs"))
    assert "theirs" in files[0].read_text()


@pytest.mark.parametrize("tell", [_record, _declare])
def test_the_same_names_in_another_order_are_refused(tmp_path, files, tell):
    tell(files, OTHER)
    cfg = _student(tmp_path, files)
    with pytest.raises(PairMismatchError, match="class 1, class 0.*student's class 0, class 1"):
        Distiller(cfg)


@pytest.mark.parametrize("tell", [_record, _declare])
def test_the_advice_ends_the_error(tmp_path, files, tell):
    tell(files, OTHER)
    Distiller(_student(tmp_path, files, CLASSES=OTHER))


def test_a_registered_set_of_the_teachers_tells_too(tmp_path, files):
    DatasetCatalog.register("theirs", list)
    MetadataCatalog.get("theirs").thing_classes = OTHER
    files[0].write_text(files[0].read_text().replace("- tiny_train", "- theirs"))
    with pytest.raises(PairMismatchError, match="teacher's classes are class 1, class 0"):
        Distiller(_student(tmp_path, files))


def test_other_names_are_refused_unless_they_are_said_to_mean_the_same(tmp_path, files):
    _record(files, ["a", "b", "c", "d"])
    with pytest.raises(PairMismatchError, match="choose a teacher of these classes"):
        Distiller(_student(tmp_path, files))
    Distiller(_student(tmp_path, files, "DISTILL.TEACHER.CLASSES", NAMES))
    Distiller(_student(tmp_path, files, "DISTILL.LOSSES", ["feature"]))


def test_spelling_does_not_matter():
    assert same_class_names(["Cell phone", "tv-set"], ["cell_phone", "TV set"])
    assert not same_class_names(["a", "b"], ["b", "a"])


def test_a_set_of_the_same_name_need_not_be_the_same(tmp_path, files):
    files[0].write_text(files[0].read_text().replace("- tiny_train", "- tiny"))
    Distiller(_student(tmp_path, files))
    _record(files, OTHER)
    with pytest.raises(PairMismatchError):
        Distiller(_student(tmp_path, files))


def test_sets_of_another_number_of_classes_do_not_speak_for_the_teacher(tmp_path, files):
    text = files[0].read_text().replace("- tiny_train", "- coco_2017_train")
    files[0].write_text(text)
    Distiller(_student(tmp_path, files))


@pytest.mark.parametrize(
    "family, requires, compared",
    [
        ("GeneralizedRCNN", {"features", "dense_logits"}, False),
        ("GeneralizedRCNN", {"logits"}, True),
        ("RetinaNet", {"dense_logits"}, True),
        ("GFL", {"features"}, False),
    ],
)
def test_only_outputs_with_a_row_for_each_class_count(family, requires, compared):
    cfg = plain_cfg("MODEL.META_ARCHITECTURE", family)
    assert compares_classes(cfg, frozenset(requires)) is compared


def test_every_checkpoint_records_the_names_and_plain_detectron2_loads_it(tmp_path, files):
    cfg = _student(tmp_path, files, "SOLVER.MAX_ITER", 1)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    path = str(tmp_path / "out" / "model_final.pth")
    assert torch.load(path)["classes"] == {"names": NAMES} == {"names": list(class_names(cfg))}
    plain = build_model(plain_cfg())
    checkpointer = DetectionCheckpointer(plain)
    checkpointer.load(path, checkpointables=[])
    assert plain.load_state_dict(torch.load(path)["model"], strict=True)
    first, second = (tmp_path / "out" / "student.yaml").read_text().splitlines()[:2]
    assert first.startswith("# Read after") and second == f"# Its classes: {json.dumps(NAMES)}"


def test_a_run_is_not_resumed_with_classes_in_another_order(tmp_path, files):
    trainer = DistillTrainer(_student(tmp_path, files, "SOLVER.MAX_ITER", 1))
    trainer.resume_or_load(resume=False)
    trainer.train()
    DatasetCatalog.remove("tiny")
    MetadataCatalog.remove("tiny")
    again = DistillTrainer(_student(tmp_path, files, "SOLVER.MAX_ITER", 2, CLASSES=OTHER))
    with pytest.raises(ResumeError, match="started with the classes .*'class 0', 'class 1'"):
        again.resume_or_load(resume=True)
