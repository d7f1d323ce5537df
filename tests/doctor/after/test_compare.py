# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The whole comparison, and the command that makes it."""

import pytest

from d2kd.doctor import Status, command
from d2kd.doctor.after import compare_runs
from d2kd.doctor.after.advice import advise
from d2kd.utils.errors import ConfigError
from tests.common.helpers import distill_cfg, plain_cfg
from tests.common.toy_sets import make_cfg, write_image, write_xml
from tests.doctor.after.toy_runs import copy_run, make_up

WRITTEN = "inference/mine, written by the run itself"


def _compare(folders, *options, resamples=100):
    return compare_runs(*map(str, folders), options, resamples=resamples)


def _rows(differences):
    return [pytest.approx(tuple(x[1:]), nan_ok=True, abs=1e-9) for x in differences]


def test_everything_is_compared(trained):
    report = _compare(trained)
    (tested,) = report.sets
    assert report.notes == [] and report.resamples == 100
    assert tested.sources["distilled"] == tested.sources["baseline"] == WRITTEN
    assert (tested.name, tested.images, tested.objects) == ("mine", 4, 8)
    logged = [run.log.rows[2]["bbox/AP"] for run in (report.distilled, report.baseline)]
    assert [tested.whole.ours, tested.whole.baseline] == pytest.approx(logged)
    assert len(tested.teacher) == len(tested.differences) == 6 + 4
    assert tested.found[0].objects == 8 and tested.agreement[0].boxes > 0
    assert all(x.images == 4 for x in report.imitation)
    assert advise(report)[0].check in ("gain", "loss", "no evidence")


def test_results_that_are_not_proved_are_evaluated_anew_and_are_the_same(trained):
    """A key on the command line may change the results; this one has its old value."""
    written = _compare(trained).sets[0]
    anew = _compare(trained, "INPUT.MIN_SIZE_TEST", "64").sets[0]
    assert anew.sources["distilled"].startswith("evaluated now, from ")
    assert [tuple(x[1:]) for x in anew.differences] == _rows(written.differences)


def test_a_teacher_that_cannot_be_built_is_a_note(trained):
    report = _compare(trained, "DISTILL.TEACHER.WEIGHTS", "absent.pth")
    (note,) = report.notes
    assert note.status is Status.WARNING and "absent.pth" in note.text
    (tested,) = report.sets
    assert tested.sources["distilled"] == WRITTEN  # the student's results do not depend on it
    assert tested.teacher == [] and report.imitation == (None, None)


def test_a_teacher_of_other_classes_is_not_tested_but_its_features_are_compared(trained):
    options = ["DISTILL.LOSSES", "['feature']", "DISTILL.TEACHER.CLASSES", "['a','b','c','d']"]
    report = _compare(trained, *options)
    assert "its classes are not those" in report.notes[0].text
    assert report.sets[0].teacher == [] and report.imitation[0].similarity


def test_sets_in_vocs_format_are_compared_by_cocos_metrics(tmp_path, monkeypatch, teacher_files):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name, box in (("a", (1, 1, 64, 48)), ("b", (11, 6, 20, 30))):
        write_image(tmp_path / "jpg" / f"{name}.jpg")
        write_xml(tmp_path / "xml" / f"{name}.xml", [("dog", box), ("cat", box, "difficult")])
    classes = ["dog", "cat", "cow", "hen"]
    declared = {"FORMAT": "voc", "ANNOTATIONS": "xml", "IMAGES": "jpg", "CLASSES": classes}
    sets = make_cfg(["toy"], ["toy"], toy=declared).DATASETS
    for name, cfg in (("a", distill_cfg(teacher_files)), ("b", plain_cfg())):
        cfg.DATASETS.update(CUSTOM=sets.CUSTOM, TRAIN=sets.TRAIN, TEST=sets.TEST)
        make_up(cfg, tmp_path / name, classes=classes)
    (tested,) = _compare([tmp_path / "a", tmp_path / "b"]).sets
    assert (tested.images, tested.objects) == (2, 2)  # difficult ones do not count
    known = [x.name for x in tested.differences if x.known]
    assert known == ["AP", "AP50", "AP75", "APs", "APm", "AP dog"]


def test_too_few_resamples_are_refused(trained):
    with pytest.raises(ConfigError, match="--resamples is 99: set it to 100 or above"):
        _compare(trained, resamples=99)


def test_the_command_prints_a_summary_and_writes_the_page(trained, tmp_path, capsys):
    ours = copy_run(trained[0], tmp_path / "mine")
    assert command.main(["--after", str(ours), str(trained[1]), "--resamples", "100"]) == 0
    printed = capsys.readouterr().out
    page = ours / "doctor_after.html"
    assert f"the page with plots: {page}" in printed and "AP50" in printed
    assert "mine against mine_baseline" in page.read_text()
    other = tmp_path / "new" / "page.html"
    options = [
        "--output",
        str(other),
        "--resamples",
        "100",
        "DISTILL.TEACHER.WEIGHTS",
        "absent.pth",
    ]
    command.main(["--after", str(ours), str(trained[1]), *options])
    assert other.is_file() and "warning teacher" in capsys.readouterr().out


def test_the_command_ends_with_a_users_mistake(trained, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--after", *map(str, reversed(trained))])
    assert end.value.code == 2 and "the folders are swapped" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--config-file", "a.yaml", "--after", "a", "b"]])
def test_the_command_needs_a_config_or_two_runs(options, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(options)
    assert end.value.code == 2 and "give --config-file before" in capsys.readouterr().err
